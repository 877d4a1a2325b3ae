"""Untrained networks whose values are all random, so that an array that is left out or swapped changes the result."""

import zlib

import jax
import numpy as np
from flax import traverse_util

from fer_jax.config import make_config
from fer_jax.inference.preprocessing import Preprocessing
from fer_jax.inference.trained_model import TrainedModel, make_model

# Preprocessing and options of networks that an exporter can get wrong.
CASES = [
    (Preprocessing((13, 14, 1)), {}),
    (Preprocessing((12, 13, 3), standardize=True), {"depth": 50, "width": 2, "squeeze_excitation": True}),
    (
        Preprocessing((14, 14, 1), crop=11, view="ten_crops"),
        {"depth": 18, "stages": 3, "stem_kernel": 3, "stem_stride": 1, "stem_pool": False},
    ),
]


def random_network(
    preprocessing: Preprocessing | None = None, *, class_names=("sad", "happy", "bored"), seed: int = 0, **options
) -> TrainedModel:
    """Returns a network with these options of `config.model`, by default the smallest, for images of 13x13."""
    preprocessing = preprocessing or Preprocessing((13, 13, 1))
    smallest = {} if "depth" in options else {"depth": 10, "stages": 2}  # a depth that is asked for has all its stages
    options = smallest | {"width": 4, "dtype": "float32", "conv": "lax"} | options
    config = make_config(**{f"model.{key}": value for key, value in options.items()})
    model = make_model(config.model, num_classes=len(class_names))
    images = jax.ShapeDtypeStruct((1, *preprocessing.image_shape), np.float32)
    shapes = jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)
    return TrainedModel(
        model=model,
        variables=traverse_util.path_aware_map(lambda path, leaf: _draw(path, leaf.shape, seed), shapes),
        class_names=tuple(class_names),
        preprocessing=preprocessing,
        config=config,
        step=1,
        metadata={"class_names": list(class_names), "dataset_fingerprint": "0123456789abcdef"},
    )


def _draw(path: tuple[str, ...], shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Returns random values of the magnitude that training gives them, different for each path."""
    draw = np.random.default_rng([seed, zlib.crc32("/".join(path).encode())])
    if path[-1] == "kernel":
        return draw.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
    if path[-1] in ("scale", "var"):
        return draw.uniform(0.5, 1.5, shape).astype(np.float32)
    return draw.normal(0, 0.3, shape).astype(np.float32)


def random_images(number: int, preprocessing: Preprocessing, seed: int = 0) -> np.ndarray:
    """Returns random images, uint8 [number, height, width, channels], of which the last has a single grey value."""
    images = np.random.default_rng(seed).integers(0, 256, (number, *preprocessing.image_shape), dtype=np.uint8)
    images[-1] = 77
    return images
