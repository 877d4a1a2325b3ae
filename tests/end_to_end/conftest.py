"""A dataset and a network that are small enough to train in a test."""

import json
import pathlib
import signal
from collections.abc import Callable

import pytest

from configs import resnet50
from fer_jax import train
from fer_jax.errors import Diverged
from fer_jax.system.signals import Stopped, StopRequest
from fer_jax.workdir.paths import Workdir
from tests.support import tiny_run


@pytest.fixture(scope="session")
def csv_file(tmp_path_factory):
    return tiny_run.write_faces(tmp_path_factory.mktemp("data") / "fer2013.csv")


@pytest.fixture(scope="session")
def make_config(csv_file):
    """Returns a function (**overrides) -> config of the smallest network for two epochs of five steps.

    overrides: {'section.key': value}.
    """

    def make(**overrides):
        config = resnet50.get_config()
        values = {
            "num_epochs": 2,
            "batch_size": 8,
            "dataset.path": str(csv_file),
            "dataset.cache_dir": str(csv_file.parent / "prepared"),
            "log.every_steps": 2,
        }
        config.update_from_flattened_dict(tiny_run.TINY | values | overrides)
        return config

    return make


class DisturbedAt(StopRequest):
    """A StopRequest whose `number`th call of `should_stop` calls `disturb`, which by default raises a real SIGTERM."""

    def __init__(self, number: int, disturb: Callable[[], None] = lambda: signal.raise_signal(signal.SIGTERM)):
        super().__init__()
        self._left, self._disturb = number, disturb

    def should_stop(self, number: int) -> bool:
        self._left -= 1
        if self._left == 0:
            self._disturb()
        return super().should_stop(number)


@pytest.fixture(scope="session")
def run():
    """Returns a function (config, workdir[, stop_at]) -> exit status, which trains in this process.

    stop_at: the call of `should_stop` in which SIGTERM is raised, counted from 1.
    """

    def run(config, workdir: pathlib.Path, stop_at: int = 0) -> int:
        try:
            train.train(config, Workdir(workdir), DisturbedAt(stop_at))
        except (Stopped, Diverged) as error:  # as in system/exits.py, which would end this process after other errors
            print(error)
            return error.exit_status
        return 0

    return run


def read_metrics(workdir: pathlib.Path) -> list[dict]:
    """Returns the events of a run without the values that depend on the clock."""
    events = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in event.items() if not key.endswith("_per_second")} for event in events]


@pytest.fixture(scope="session")
def finished(make_config, run, tmp_path_factory):
    """Returns the workdir of a complete run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert run(make_config(), workdir) == 0
    return workdir
