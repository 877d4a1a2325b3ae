"""What was written, held against the network that it was written of."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# The largest difference of probabilities that an export may have, by the dtype of its weights. A ResNet-50 trained on
# FER-2013 differs by 1e-6, 2e-3, 8e-3 and 4e-2; a layer that is wrong makes it 0.1 to 1. Float32 is not held to 1e-4:
# of a standardised image of one grey value nothing is left but round-off, enlarged a thousand times.
BOUNDS = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1, "int8": 2.5e-1}


class Comparison(NamedTuple):
    """difference: the largest one of two probabilities. equal: the share of images with the same prediction."""

    difference: float
    equal: float
    num_images: int


def compare(predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, expected: np.ndarray) -> Comparison:
    """Compares the probabilities of uint8 images, of which there are two at least, with those expected of them."""
    # One image and then many: a batch size that became a constant shows.
    found = np.concatenate([predict(images[:1]), predict(images[1:])])
    if found.shape != expected.shape:
        raise ValueError(f"what was written returns {list(found.shape)} in place of {list(expected.shape)}")
    same = found.argmax(axis=-1) == expected.argmax(axis=-1)
    return Comparison(float(np.abs(found - expected).max()), float(same.mean()), len(images))
