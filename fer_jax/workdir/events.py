"""Writes the metrics of a run to metrics.jsonl and for TensorBoard while it trains."""

import collections
import concurrent.futures
import contextlib
import io
import json
import math
import os
from collections.abc import Callable

from fer_jax import errors
from fer_jax.workdir.paths import TENSORBOARD, Workdir, write_whole


class MetricsWriter:
    """Writes events to metrics.jsonl, one JSON object a line, and in the background to TensorBoard.

    Events after `step` and `epochs` are dropped, because the resumed run writes them again. An exception in the
    background is raised by a later call.

    Args:
      workdir: the workdir of the run.
      step, epochs: the numbers of steps and of complete epochs that the run has trained.
      common: keys and values that are added to every event.
      is_primary: whether this process writes; only one process of a run does.
    """

    def __init__(self, workdir: Workdir, *, step: int, epochs: int, common: dict, is_primary: bool):
        self._file = None
        self._common, self._workdir, self._path = common, workdir, workdir.metrics
        if is_primary:
            self._closing = contextlib.ExitStack()
            # One thread keeps the order. It imports TensorFlow's writer, which takes seconds, during the first steps.
            self._background = self._closing.enter_context(concurrent.futures.ThreadPoolExecutor(1))
            self._tensorboard, self._writing = None, collections.deque()
            with workdir.time_limit():
                kept = [
                    event
                    for event in read_events(workdir)
                    if event["step"] <= step and (event["kind"] == "train" or event["epoch"] <= epochs)
                ]
                write_whole(self._path, "".join(map(_to_line, kept)))
                self._file = self._closing.enter_context(self._path.open("a"))
                # TensorBoard's file can't be truncated, so it is written again from the start.
                for old in workdir.path.glob(TENSORBOARD):
                    old.unlink()
            for event in kept:
                self._show(event)

    def write(self, *, step: int, epoch: int, kind: str, **values: float) -> None:
        """Writes one event; kind: 'train' or 'validation'. Values that are not finite are left out."""
        if self._file:
            event = {"step": step, "epoch": epoch, "kind": kind, **without_nonfinite(values)}
            with self._workdir.time_limit(), errors.naming(self._path):
                self._file.write(_to_line(event | self._common))
                # In a bucket each flush uploads the whole file.
                if not self._workdir.is_in_bucket:
                    self._file.flush()
                self._show(event)

    def sync(self) -> None:
        """Flushes metrics.jsonl to disk (fsync) or uploads it to the bucket."""
        if self._file:
            # Object storage has no file descriptor.
            no_descriptor = contextlib.suppress(AttributeError, io.UnsupportedOperation)
            with self._workdir.time_limit(), errors.naming(self._path):
                self._file.flush()
                with no_descriptor:
                    os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes both files, after everything is written."""
        if self._file:
            self._in_background(self._close_tensorboard)
            with self._closing, errors.naming(self._path), self._workdir.time_limit():
                while self._writing:
                    self._writing.popleft().result()

    def _show(self, event: dict) -> None:
        values = {
            f"{event['kind']}/{key}": value
            for key, value in event.items()
            if key not in ("step", "epoch", "kind", *self._common)
        }
        self._in_background(self._write_scalars, event["step"], values)

    def _in_background(self, function: Callable, *arguments) -> None:
        self._writing.append(self._background.submit(function, *arguments))
        while self._writing and self._writing[0].done():
            self._writing.popleft().result()  # raises the exception of a failed write

    def _write_scalars(self, step: int, values: dict) -> None:
        if self._tensorboard is None:
            from clu import metric_writers

            with self._workdir.time_limit(), errors.naming(self._workdir.path):
                self._tensorboard = metric_writers.SummaryWriter(str(self._workdir.path))
        with self._workdir.time_limit():
            self._tensorboard.write_scalars(step, values)

    def _close_tensorboard(self) -> None:
        if self._tensorboard is not None:
            with self._workdir.time_limit():
                self._tensorboard.close()


def read_events(workdir: Workdir) -> list[dict]:
    """Returns the events of metrics.jsonl, without values that are not finite, up to a line that a crash cut off."""
    path = workdir.metrics
    events = []
    with workdir.time_limit():
        text = path.read_text() if path.exists() else ""
    for line in text.splitlines():
        try:
            # Version 0.1.0 wrote NaN for an epoch in which every step was skipped.
            events.append(without_nonfinite(json.loads(line)))
        except json.JSONDecodeError:
            break
    return events


def without_nonfinite(values: dict) -> dict:
    """Returns a dict, and the dicts in it, without the keys whose values are NaN or infinite: JSON has neither."""
    return {
        key: without_nonfinite(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if not isinstance(value, float) or math.isfinite(value)
    }


def _to_line(event: dict) -> str:
    return json.dumps(event, allow_nan=False) + "\n"
