"""Draws a labelled sheet of the embedded dataset: python -m scripts.draw embedded OUT.png."""

import sys

import numpy as np
from matplotlib.figure import Figure

from fer_jax.data import embedded
from fer_jax.data.dataset import CLASS_NAMES

COLUMNS = 10
CELL = 50  # a face and a pixel of margin around it
MARGIN = 80  # for the class names, in pixels of the sheet


def draw_sheet(path: str) -> None:
    """Writes a PNG with a row for each class: its first training faces, at twice their size."""
    train = embedded.make().split("train")
    rows = []
    for label in range(len(CLASS_NAMES)):
        faces = train.images[train.labels == label][:COLUMNS, ..., 0]
        rows.append(np.concatenate(np.pad(faces, ((0, 0), (1, 1), (1, 1)), constant_values=255), axis=1))
    sheet = np.concatenate(rows)

    height, width = 2 * sheet.shape[0], MARGIN + 2 * sheet.shape[1]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    axes = figure.add_axes((MARGIN / width, 0, 1 - MARGIN / width, 1))
    axes.imshow(sheet, "gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=CELL * np.arange(len(CLASS_NAMES)) + CELL / 2, yticklabels=CLASS_NAMES)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(path)


def main(argv: list[str]) -> None:
    if len(argv) != 1:
        sys.exit(__doc__)
    draw_sheet(argv[0])
