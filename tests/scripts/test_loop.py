"""The time of the training loop on a simulated device."""

import pytest

from scripts.benchmark import loop
from tests.support.tiny_run import TINY


def test_each_epoch_has_its_steps_and_what_is_beside_them():
    options = [f"--config.{key}={value}" for key, value in (TINY | {"train.steps_per_call": 2}).items()]
    sizes = {"train": 64 * 5 + 3, "validation": 70}
    epochs = loop.measure(options, num_epochs=3, step_seconds=0.002, sizes=sizes)
    assert len(epochs) == 3
    for seconds in epochs:
        assert seconds["steps"] == pytest.approx(5 * 0.002)
        assert 0 < seconds["evaluating"] < seconds["all"]
        assert 0 < seconds["saving"] < seconds["all"]
        assert seconds["all"] > seconds["steps"]
