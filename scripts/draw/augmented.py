"""Draws training faces as the training step augments them: python -m scripts.draw augmented OUT.png [--config=FILE].

Each row shows a face: the original first, then the same position of the batch at nine steps; crops have a white frame.
The last row widens every range, so that the fill outside the image shows.
"""

import argparse
import sys

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from matplotlib.figure import Figure

from fer_jax.data import embedded
from fer_jax.errors import UserError
from fer_jax.parallel import AXIS_NAME
from fer_jax.recipe.images import AugmentConfig, augment_batch, scale_pixels
from fer_jax.system import command_line

FACES = 6
STEPS = 9
STRONG = AugmentConfig(flip=0.5, rotation=45.0, zoom=0.4, shift=0.25)


def augmented(images: np.ndarray, config: AugmentConfig, seed: int) -> np.ndarray:
    """Maps uint8 [N, 48, 48, 1] to float32 [N, 1 + STEPS, 48, 48]: the original, then its augmentation at each step."""

    def augment_all(images):
        scaled = scale_pixels(images)
        views = [
            augment_batch(scaled, seed=seed, step=step, config=config, axis_name=AXIS_NAME) for step in range(STEPS)
        ]
        return jax.numpy.stack([scaled, *(frame(view, scaled.shape[1]) for view in views)], axis=1)[..., 0]

    mesh, batch = Mesh(jax.devices()[:1], (AXIS_NAME,)), PartitionSpec(AXIS_NAME)
    return np.asarray(jax.jit(jax.shard_map(augment_all, mesh=mesh, in_specs=batch, out_specs=batch))(images))


def frame(views, size: int):
    """Pads images [N, n, n, 1] with white on all sides to [N, size, size, 1]."""
    before = (size - views.shape[1]) // 2
    around = (before, size - views.shape[1] - before)
    return jax.numpy.pad(views, ((0, 0), around, around, (0, 0)), constant_values=1.0)


def draw_sheet(path: str, config) -> None:
    """Writes the PNG, with the augmentation ranges and the seed of `config`."""
    images = embedded.make(sizes={"train": FACES}).split("train").images
    rows = {
        f"face {i + 1}": row for i, row in enumerate(augmented(images, AugmentConfig(**config.augment), config.seed))
    }
    rows["strong"] = augmented(images[:1], STRONG, config.seed)[0]

    figure = Figure(figsize=(STEPS + 1, len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1)
    for axis, (name, row) in zip(axes, rows.items(), strict=True):
        sheet = np.concatenate(np.pad(row, ((0, 0), (1, 1), (1, 1)), constant_values=1.0), axis=1)
        axis.imshow(sheet, "gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.spines[:].set_visible(False)
    axes[0].set_title("the original, then nine steps", loc="left")
    figure.savefig(path, dpi=100)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("path", metavar="OUT.png")
    parser.add_argument("--config", default="resnet50", help="a file, or the name of one of configs/")
    arguments = parser.parse_args(argv)
    try:
        config = command_line.read_config_file(arguments.config)
    except UserError as error:
        sys.exit(f"error: {error}")
    draw_sheet(arguments.path, config)
