"""Compares maps of what a network looked at: python -m scripts.benchmark explain --weights=FILE_OR_RUN [--data=PATH]

This is the deletion test. In faces of the validation split, the tenth and the quarter of the pixels that a map rates as
most important are blurred, and the fall of the predicted class's probability is averaged: the larger, the better the
map. Then all but that quarter is blurred, and the remaining probability is averaged. Blurring hides without adding
edges. A disc in the centre, where the face is, and smooth random blobs are baselines that a map has to beat. Prints a
Markdown table.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
from scipy import ndimage

from fer_jax.inference import explanation, weights
from fer_jax.inference.evaluation_data import load_other, load_own
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.system.terminal import SILENT

# The standard deviation of the blur and of the random blobs, in pixels of an image of 48x48.
SIGMA = 4.0
SHARES = (0.10, 0.25)


def disc(trained: TrainedModel, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns maps that don't depend on the images: the nearer to the centre, the more important."""
    height, width = images.shape[1:3]
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot((rows - (height - 1) / 2) / height, (columns - (width - 1) / 2) / width)
    return np.broadcast_to(1 - distance, (len(images), height, width))


def blobs(trained: TrainedModel, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=images.shape[:3])
    return ndimage.gaussian_filter(noise, (0, SIGMA, SIGMA))


def candidates(trained: TrainedModel) -> Iterator[tuple[str, Callable]]:
    yield from explanation.METHODS.items()
    weights_of = {"LayerCAM": explanation.weight_places, "Grad-CAM": explanation.weight_channels}
    for name, weight in weights_of.items():
        for stage in range(len(trained.model.stage_sizes)):
            yield (
                f"{name}, stage {stage + 1} alone",
                lambda *given, weight=weight, stage=stage: explanation.stage_maps(*given, weight)[stage],
            )
    yield "a disc in the centre", disc
    yield "random blobs", blobs


def deletion_test(trained: TrainedModel, images: np.ndarray, maps: np.ndarray, classes: np.ndarray) -> list[float]:
    """Returns the mean fall of the classes' probability for each blurred share, and its mean with only the last kept.

    images: uint8 [n, height, width, channels]. maps: float [n, height, width]. classes: int [n].
    """
    blurred = ndimage.gaussian_filter(images, (0, SIGMA, SIGMA, 0))
    # Ranks rather than thresholds, so that exactly the share is hidden, even if many pixels are equal.
    ranks = np.argsort(np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable"), axis=1).reshape(maps.shape)

    def probability(is_sharp: np.ndarray) -> np.ndarray:
        shown = np.where(is_sharp[..., None], images, blurred)
        return trained.probabilities(shown)[np.arange(len(images)), classes]

    whole = probability(np.ones(maps.shape, bool))
    falls = [float(np.mean(whole - probability(ranks >= share * maps[0].size))) for share in SHARES]
    return [*falls, float(np.mean(probability(ranks < SHARES[-1] * maps[0].size)))]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=weights.PRETRAINED, help="a weights file or a run (default: %(default)s)")
    parser.add_argument("--data", help="the network's data, where they are not where they were")
    parser.add_argument("--faces", type=int, default=300)
    arguments = parser.parse_args(argv)
    trained = TrainedModel.load(arguments.weights)
    if arguments.data:
        dataset = load_other(trained, arguments.data, "validation", trained.config.dataset, SILENT)
    else:
        dataset = load_own(trained, str(arguments.weights), SILENT)
    # The faces are spread over the split, since its files may be sorted by class.
    images = dataset.split("validation").images
    images = images[np.linspace(0, len(images) - 1, min(arguments.faces, len(images))).round().astype(int)]
    probabilities = trained.probabilities(images)
    classes = probabilities.argmax(axis=1)
    shape = " x ".join(map(str, images.shape[1:3]))
    print(
        f"{len(images)} faces of {dataset.name}, {shape}; mean probability of the predicted class "
        f"{probabilities.max(axis=1).mean():.3f}\n\n"
        f"| map | top {SHARES[0]:.0%} blurred: fall | top {SHARES[1]:.0%} blurred: fall | "
        f"only the top {SHARES[1]:.0%} kept: left | ms a face |\n|---|---:|---:|---:|---:|"
    )
    for name, method in candidates(trained):
        method(trained, images[:16], classes[:16])  # compiles
        started = time.perf_counter()
        maps = method(trained, images, classes)
        milliseconds = (time.perf_counter() - started) * 1000 / len(images)
        figures = " | ".join(f"{value:.3f}" for value in deletion_test(trained, images, maps, classes))
        print(f"| {name} | {figures} | {milliseconds:.1f} |", flush=True)
