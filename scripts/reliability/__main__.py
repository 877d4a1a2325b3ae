"""Tries to break a run: python -m scripts.reliability PART [--help]

kills       kills a run again and again, and compares the outcome with that of an undisturbed run
fuzz        reads thousands of broken files and folders
soak        watches a long run of a tiny network
sanitizers  runs the tests of the native code under AddressSanitizer and UndefinedBehaviorSanitizer
"""

import importlib
import sys

PARTS = ("kills", "fuzz", "soak", "sanitizers")

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in PARTS:
        importlib.import_module(f"scripts.reliability.{sys.argv[1]}").main(sys.argv[2:])
    else:
        sys.exit(__doc__)
