"""Measures the share of an epoch that the loop spends in steps if a step takes 1 ms, as on a GPU, and the rest by kind.

    python -m scripts.benchmark loop [--config.checkpoint.every_epochs=N ...]

Runs `fer_jax.train` with its files, events, checkpoints and early stopping, a state of the real size (ResNet-50 and
Adam, 282 MB) and FER-2013's numbers of images. Only the device is simulated: training steps take their time in a queue,
as on a GPU, evaluation steps take none, and the weights never change.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from unittest import mock

import jax
import numpy as np

from fer_jax import train
from fer_jax.config import check
from fer_jax.data.dataset import IMAGE_SHAPE, Dataset, Split
from fer_jax.inference.evaluator import Evaluator
from fer_jax.loop.program import Program
from fer_jax.system import command_line
from fer_jax.system.signals import StopRequest
from fer_jax.workdir.checkpoints import Checkpoints
from fer_jax.workdir.paths import Workdir

SIZES = {"train": 28_709, "validation": 3_589}


class Pending:
    """An array of a simulated device; fetching it waits until it is due."""

    def __init__(self, value, due: float):
        self._value, self._due = np.asarray(value), due

    def __array__(self, *_, **__):
        time.sleep(max(0.0, self._due - time.perf_counter()))
        return self._value


class SimulatedDevice:
    """Replaces the compiled programs by a queue of steps, which return at once and complete one after the other.

    seconds: for each epoch, the seconds spent in steps, evaluating and saving.
    """

    def __init__(self, step_seconds: float):
        self._step_seconds = step_seconds
        self.seconds: list[dict[str, float]] = [self._none()]
        self.started: float | None = None
        self._due, self._step = 0.0, 0

    @staticmethod
    def _none() -> dict[str, float]:
        return {"steps": 0.0, "evaluating": 0.0, "saving": 0.0}

    def end_epoch(self) -> None:
        self.seconds.append(self._none())

    def call(self, program: Program, state, batches: dict):
        """Enqueues the steps of one call of the training program."""
        self.started = self.started or time.perf_counter()
        num_steps, batch_size = batches["index"].shape[:2]
        program._shard(batches)  # the transfer to the device is real
        self._due = max(self._due, time.perf_counter()) + num_steps * self._step_seconds
        self.seconds[-1]["steps"] += num_steps * self._step_seconds
        sums = {"loss": 1.5 * batch_size, "correct": batch_size // 2, "count": batch_size, "learning_rate": 0.001}
        pending = {key: Pending(np.full(num_steps, value), self._due) for key, value in sums.items()}
        self._step += num_steps
        return state.replace(step=jax.device_put(np.int32(self._step), state.step.sharding)), pending

    def evaluate(self, variables, data, batch) -> dict:
        """Returns the metrics of an evaluation step, which takes no time."""
        return {"whole": {"loss": np.float32(1.5), "confusion": np.eye(7, dtype=np.int32)}}

    def timed(self, kind: str, function):
        """Wraps a function so that its time counts as `kind`."""

        def call(*arguments, **options):
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[-1][kind] += time.perf_counter() - started

        return call


def measure(options: list[str], *, num_epochs: int, step_seconds: float = 0.001, sizes=SIZES) -> list[dict]:
    """Returns for each epoch the seconds in total, in steps, in evaluating and in saving."""
    config = command_line.read_config_file("resnet50")
    values = dict(option.removeprefix("--config.").split("=", 1) for option in options)
    defaults = {"num_epochs": num_epochs, "early_stopping.patience": num_epochs}
    config.update_from_flattened_dict(defaults | {key: _parse(value) for key, value in values.items()})
    check(config)
    generator = np.random.default_rng(0)
    splits = {
        name: Split(
            images=generator.integers(0, 256, (number, *IMAGE_SHAPE), np.uint8),
            labels=generator.integers(0, 7, number).astype(np.int32),
            rows=np.arange(number),
        )
        for name, number in sizes.items()
    }
    device = SimulatedDevice(step_seconds)
    ends = []
    with tempfile.TemporaryDirectory() as folder, _simulated(device, Dataset("random", splits), ends):
        train.train(config, Workdir(pathlib.Path(folder)), StopRequest())
    starts = [device.started, *ends[:-1]]
    return [{"all": end - start, **seconds} for start, end, seconds in zip(starts, ends, device.seconds, strict=False)]


def _parse(value: str):
    return int(value) if value.lstrip("-").isdecimal() else {"True": True, "False": False}.get(value, value)


@contextlib.contextmanager
def _simulated(device: SimulatedDevice, dataset: Dataset, ends: list[float]) -> Iterator[None]:
    say = train.Terminal.say

    def note(terminal, line: str) -> None:
        # An epoch ends with its line on the terminal.
        if line.startswith("epoch ") and "|" in line:
            ends.append(time.perf_counter())
            device.end_epoch()
        say(terminal, line)

    evaluate = Evaluator.__call__

    def evaluate_on_device(evaluator, *arguments):
        evaluator._step = device.evaluate
        evaluator._prepare = lambda variables: variables
        return evaluate(evaluator, *arguments)

    with contextlib.ExitStack() as stack:
        for target, name, replacement in (
            (train, "load_dataset", lambda *_: dataset),
            (train, "_report", lambda *_: None),
            (train.Terminal, "say", note),
            (Program, "lower", lambda program, first_step: {}),
            (Program, "compile", lambda program, lowered: None),
            (Program, "__call__", lambda program, state, batches: device.call(program, state, batches)),
            (Evaluator, "__call__", device.timed("evaluating", evaluate_on_device)),
            (Checkpoints, "save", device.timed("saving", Checkpoints.save)),
        ):
            stack.enter_context(mock.patch.object(target, name, replacement))
        yield


def main(argv: list[str]) -> None:
    """Prints each epoch's share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--step_ms", type=float, default=1.0)
    arguments, options = parser.parse_known_args(argv)
    epochs = measure(options, num_epochs=arguments.epochs, step_seconds=arguments.step_ms / 1000)
    print("\n| epoch | ms | in steps | evaluating | saving | rest |\n|---:|---:|---:|---:|---:|---:|")
    for number, seconds in enumerate(epochs, 1):
        rest = seconds["all"] - sum(seconds[kind] for kind in ("steps", "evaluating", "saving"))
        shares = [seconds["steps"], seconds["evaluating"], seconds["saving"], rest]
        print(
            f"| {number} | {1000 * seconds['all']:.0f} | "
            + " | ".join(f"{s / seconds['all']:.1%}" for s in shares)
            + " |"
        )
    # The first epoch is left out, since it sets up what the others use.
    later = epochs[1:]
    share = sum(epoch["steps"] for epoch in later) / sum(epoch["all"] for epoch in later)
    print(f"\nFrom the second epoch on {share:.1%} of the time is in steps.", file=sys.stdout)
