"""Weights files (`inference.weights`) as one of the export formats."""

import pathlib
from collections.abc import Callable

import numpy as np

from fer_jax.exports import function
from fer_jax.inference.trained_model import TrainedModel


def write(trained: TrainedModel, path: pathlib.Path, *, dtype: str) -> None:
    """Writes the network with its kernels in `dtype`; see `TrainedModel.save`."""
    trained.save(path, dtype=dtype)


def read(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `predict(uint8 images) -> probabilities`, float32 [batch, classes], by the network in the file."""
    trained = TrainedModel.load(path)
    return lambda images: function.predict(trained, images)["probabilities"]
