"""Evaluation of a split: every example once, whatever the batch size and the devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from fer_jax.data.dataset import Split
from fer_jax.inference.evaluator import Evaluator
from fer_jax.system.signals import StopRequest


def brightness_of_sevenths(_, images):
    """Returns the brightness of each seventh of an image as logits: a classifier that needs no weights."""
    return {"whole": (images[:, :42].astype("float32") / 255).reshape(len(images), 7, -1).mean(axis=-1)}


def make_split(seed: int, number: int = 37) -> Split:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (number, 48, 48, 1), dtype=np.uint8)
    return Split(images, generator.integers(0, 7, number).astype(np.int32), np.arange(number))


def make_evaluator(devices: int, mapper: str, batch_size: int, stop: StopRequest, **kwargs) -> Evaluator:
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))
    return Evaluator(brightness_of_sevenths, mesh, mapper, batch_size=batch_size, stop=stop, **kwargs)


def expected_sums(split: Split) -> tuple[np.ndarray, float]:
    number = len(split)
    logits = split.images[:, :42].reshape(number, 7, -1).astype(np.float64).mean(axis=-1) / 255
    confusion = np.zeros((7, 7), int)
    np.add.at(confusion, (split.labels, logits.argmax(axis=1)), 1)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(number), split.labels]
    return confusion, losses.sum()


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 64), (3, 5), (8, 8), (8, 100)])
@pytest.mark.parametrize("mapper", ["shard_map", "pmap"])
def test_every_example_counts_once_for_any_batch_size_and_device_count(devices, batch_size, mapper):
    split = make_split(1)
    with StopRequest() as stop:
        metric_sums = make_evaluator(devices, mapper, batch_size, stop)({}, split)["whole"]
    confusion, loss = expected_sums(split)
    np.testing.assert_array_equal(metric_sums["confusion"], confusion)
    np.testing.assert_allclose(metric_sums["loss"], loss, rtol=1e-5)


def test_a_split_on_the_devices_is_never_taken_for_another_one():
    """Evaluates each split right after it is made, since a new split may get the id of a deleted one."""
    with StopRequest() as stop:
        evaluator = make_evaluator(1, "shard_map", 16, stop, on_device=True)
        for seed in range(8):
            confusion, _ = expected_sums(make_split(seed))
            np.testing.assert_array_equal(evaluator({}, make_split(seed))["whole"]["confusion"], confusion)
