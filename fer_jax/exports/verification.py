"""Compares an exported file with the network that it was written from."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# The largest difference of probabilities that an export may have, by the dtype of its weights. A ResNet-50 trained on
# FER-2013 differs by 1e-6, 2e-3, 8e-3 and 4e-2; a wrong layer makes it 0.1 to 1. The bound of float32 is not 1e-4:
# standardising an image of one grey value leaves nothing but rounding errors, enlarged a thousand times.
BOUNDS = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1, "int8": 2.5e-1}


class Comparison(NamedTuple):
    """A result. difference: the largest in probability. equal: the share of images with the same prediction."""

    difference: float
    equal: float
    num_images: int


def compare(predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, expected: np.ndarray) -> Comparison:
    """Compares the probabilities that `predict` returns for two or more uint8 images with the expected ones."""
    # Called with one image and then with many, to detect a batch size that became a constant.
    found = np.concatenate([predict(images[:1]), predict(images[1:])])
    if found.shape != expected.shape:
        raise ValueError(f"what was written returns {list(found.shape)} in place of {list(expected.shape)}")
    same = found.argmax(axis=-1) == expected.argmax(axis=-1)
    return Comparison(float(np.abs(found - expected).max()), float(same.mean()), len(images))
