"""Draws sheets of faces: python -m scripts.draw PART [--help]

augmented   training faces as the training step augments them
embedded    a labelled sheet of the embedded dataset
"""

import importlib
import sys

PARTS = ("augmented", "embedded")

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in PARTS:
        importlib.import_module(f"scripts.draw.{sys.argv[1]}").main(sys.argv[2:])
    else:
        sys.exit(__doc__)
