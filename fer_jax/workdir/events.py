"""Writes a run's metrics as they are made, to metrics.jsonl and for TensorBoard."""

import contextlib
import io
import json
import math
import os

from fer_jax import errors
from fer_jax.workdir.paths import Workdir


class MetricsWriter:
    """Writes events to metrics.jsonl, one JSON object a line, and to TensorBoard.

    step, epochs: how far the run is. Later events are dropped, since the resumed run makes them again. TensorBoard's
    file, which can't be cut, is made anew from those that are kept. common: goes into every event. is_primary: only one
    process of a run writes.
    """

    def __init__(self, workdir: Workdir, *, step: int, epochs: int, common: dict, is_primary: bool):
        self._file = None
        self._common, self._workdir = common, workdir
        if is_primary:
            with workdir.time_limit():
                self._open(step, epochs)

    def _open(self, step: int, epochs: int) -> None:
        from clu import metric_writers  # imports TensorFlow, which takes seconds

        workdir = self._workdir
        self._path = path = workdir.metrics
        kept = [
            event
            for event in read_events(workdir)
            if event["step"] <= step and (event["kind"] == "train" or event["epoch"] <= epochs)
        ]
        # Written beside and renamed, so that a crash leaves the old file or the new one.
        partial = path.with_suffix(".partial")
        with errors.naming(partial):
            partial.write_text("".join(_to_line(event) for event in kept))
        partial.replace(path)
        self._closing = contextlib.ExitStack()
        self._file = self._closing.enter_context(path.open("a"))
        # TensorBoard would show the events of both files, those that were dropped too.
        for old in workdir.path.glob("events.out.tfevents.*"):
            old.unlink()
        self._tensorboard = metric_writers.SummaryWriter(str(workdir.path))
        self._closing.callback(self._tensorboard.close)
        for event in kept:
            self._show(event)

    def write(self, *, step: int, epoch: int, kind: str, **values: float) -> None:
        """Writes one event; kind: 'train' or 'validation'. Values that are not finite are left out."""
        if self._file:
            # JSON has no NaN; readers other than Python's refuse a file that holds one.
            finite = {key: value for key, value in values.items() if math.isfinite(value)}
            event = {"step": step, "epoch": epoch, "kind": kind, **finite}
            with errors.naming(self._path):
                self._file.write(_to_line(event | self._common))
                self._file.flush()
            self._show(event)

    def sync(self) -> None:
        """Flushes metrics.jsonl to disk (fsync)."""
        if self._file:
            # Object storage has no file descriptor.
            no_descriptor = contextlib.suppress(AttributeError, io.UnsupportedOperation)
            with self._workdir.time_limit(), errors.naming(self._path), no_descriptor:
                os.fsync(self._file.fileno())

    def _show(self, event: dict) -> None:
        values = {
            f"{event['kind']}/{key}": value
            for key, value in event.items()
            if key not in ("step", "epoch", "kind", *self._common)
        }
        self._tensorboard.write_scalars(event["step"], values)

    def close(self) -> None:
        """Closes both files."""
        if self._file:
            with self._workdir.time_limit(), errors.naming(self._path):
                self._closing.close()


def _to_line(event: dict) -> str:
    return json.dumps(event, allow_nan=False) + "\n"


def read_events(workdir: Workdir) -> list[dict]:
    """Returns the events of metrics.jsonl; a last line that a crash cut off is left out, and so are values of NaN."""
    path = workdir.metrics
    events = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            event = json.loads(line)
            # Version 0.1.0 wrote NaN where every step of an epoch was skipped.
            events.append({key: value for key, value in event.items() if value == value})
        # Only the last line can be cut off; lines are written one by one.
        except json.JSONDecodeError:
            break
    return events
