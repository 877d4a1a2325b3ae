"""A trace of a few training steps, on demand."""

import os

import jax
from etils import epath

from fer_jax.loop.meter import Meter

# The first steps of a process are slower than the rest: caches, allocators and the pipeline settle.
FIRST = 10


class Profiler:
    """Traces `num_steps` steps, from the tenth on that this process takes; with None it does nothing.

    TensorBoard (with its profile plugin) and xprof open what is then in `directory`. now: the step the process starts
    at.
    """

    def __init__(self, directory: epath.Path, *, num_steps: int | None, now: int):
        self._directory = directory
        self._start = now + FIRST if num_steps else None
        self._end = now + FIRST + num_steps if num_steps else None

    def follow(self, step: int, meter: Meter) -> None:
        """Starts or ends the trace where that is due before `step`; the meter's clock stands still in between."""
        if self._start is not None and step >= self._start:
            meter.flush()
            jax.profiler.start_trace(os.fspath(self._directory))
            self._start = None
        elif self._start is None and self._end is not None and step >= self._end:
            meter.flush()
            jax.profiler.stop_trace()
            self._end = None
            meter.start()
