"""report/errors_<name>.png: wrongly classified images, each beside what the network looked at."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from fer_jax.workdir.report import save_figure


class Error(NamedTuple):
    """A wrongly classified image.

    index: its 0-based position in the split. image: uint8 [height, width, channels]. drawn: the same image under a map
    of how much each pixel counted for the predicted class, uint8 [height, width, 3].
    """

    true: str
    predicted: str
    probability: float
    index: int
    image: np.ndarray
    drawn: np.ndarray


def write(
    errors: Sequence[Error], class_names: Sequence[str], folder: epath.Path, *, name: str, title: str, ramp: np.ndarray
) -> epath.Path:
    """Writes the sheet, one row for each true class, and returns its path; ramp: the map's colours, [1, n, 3]."""
    folder.mkdir(exist_ok=True)
    by_class = {true: [error for error in errors if error.true == true] for true in class_names}
    number = max(1, *map(len, by_class.values()))
    figure = Figure(figsize=(1 + 2.1 * number, 0.9 + 1.45 * len(class_names)), layout="constrained")
    rows = figure.subplots(len(class_names), 2 * number, squeeze=False)
    for (true, row_errors), axes in zip(by_class.items(), rows, strict=True):
        for axis in axes:
            axis.axis("off")
        # A text beside the first image, since its axis, and with it the axis label, is switched off.
        axes[0].text(-0.1, 0.5, true, rotation=90, ha="right", va="center", transform=axes[0].transAxes, fontsize=11)
        for error, image_axis, map_axis in zip(row_errors, axes[::2], axes[1::2], strict=False):
            image_axis.imshow(error.image, cmap="gray", vmin=0, vmax=255)
            map_axis.imshow(error.drawn)
            image_axis.set_title(f"image {error.index}", fontsize=8)
            map_axis.set_title(f"{error.predicted} {error.probability:.0%}", fontsize=8)
    figure.suptitle(
        f"{title}\nrows: the true class; beside each image what counted for the class it was taken for", fontsize=11
    )
    scale = figure.add_axes((0.35, 0.0, 0.3, 0.012))
    scale.imshow(ramp, aspect="auto")
    scale.set_axis_off()
    figure.text(0.34, 0.0, "counts little", ha="right", va="bottom", fontsize=8)
    figure.text(0.66, 0.0, "counts most", ha="left", va="bottom", fontsize=8)
    path = folder / f"errors_{name}.png"
    save_figure(figure, path, dpi=90)
    return path
