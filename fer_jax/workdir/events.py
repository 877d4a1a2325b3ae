"""Writes a run's metrics as they are made, to metrics.jsonl and for TensorBoard."""

import contextlib
import io
import json
import os

from etils import epath

from fer_jax import errors


class MetricsWriter:
    """Writes events to metrics.jsonl, one JSON object a line, and to TensorBoard.

    step, epochs: what the run has done. Events beyond are dropped: the resumed run makes them again. TensorBoard's
    file, which can't be cut, is made anew from those that are kept. common: goes into every event. is_primary: only
    one process of a run writes.
    """

    def __init__(self, workdir: epath.Path, *, step: int, epochs: int, common: dict, is_primary: bool):
        self._file = None
        self._common = common
        if is_primary:
            from clu import metric_writers  # imports TensorFlow, which takes seconds

            self._path = path = workdir / "metrics.jsonl"
            kept = [
                event
                for event in read_events(workdir)
                if event["step"] <= step and (event["kind"] == "train" or event["epoch"] <= epochs)
            ]
            partial = path.with_suffix(".partial")
            with errors.naming(partial):
                partial.write_text("".join(json.dumps(event) + "\n" for event in kept))
            partial.replace(path)
            self._closing = contextlib.ExitStack()
            self._file = self._closing.enter_context(path.open("a"))
            for old in workdir.glob("events.out.tfevents.*"):
                old.unlink()
            self._tensorboard = metric_writers.SummaryWriter(str(workdir))
            self._closing.callback(self._tensorboard.close)
            for event in kept:
                self._show(event)

    def write(self, *, step: int, epoch: int, kind: str, **values: float) -> None:
        """Writes one event; kind: 'train' or 'validation'."""
        if self._file:
            event = {"step": step, "epoch": epoch, "kind": kind, **values}
            with errors.naming(self._path):
                self._file.write(json.dumps(event | self._common) + "\n")
                self._file.flush()
            self._show(event)

    def sync(self) -> None:
        """Sees to it that what was written outlasts the machine."""
        if self._file:
            # Object storage has no file number.
            with errors.naming(self._path), contextlib.suppress(AttributeError, io.UnsupportedOperation):
                os.fsync(self._file.fileno())

    def _show(self, event: dict) -> None:
        values = {
            f"{event['kind']}/{key}": value
            for key, value in event.items()
            if key not in ("step", "epoch", "kind", *self._common)
        }
        self._tensorboard.write_scalars(event["step"], values)

    def close(self) -> None:
        if self._file:
            with errors.naming(self._path):
                self._closing.close()


def read_events(workdir: epath.Path) -> list[dict]:
    """Reads metrics.jsonl; a last line cut off by a crash is left out."""
    path = workdir / "metrics.jsonl"
    events = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events
