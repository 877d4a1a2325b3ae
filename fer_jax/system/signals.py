"""SIGTERM, SIGHUP and Ctrl-C as a flag that the loop looks at where it can stop cleanly."""

import signal

import jax
import numpy as np
from jax.experimental import multihost_utils


class StopRequest:
    """While entered, notes the first of the three; a second one acts as it would have.

    A SIGHUP that was ignored before (nohup) stays ignored.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._previous = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        self._restore()

    def _note(self, number, _frame):
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self):
        while self._previous:
            signal.signal(*self._previous.popitem())

    def is_agreed(self, number: int) -> bool:
        """Whether to stop before the `number`th of a series of steps.

        Several processes must stop at the same one: they ask each other, which takes time, at every 20th.
        """
        if jax.process_count() == 1:
            return self.received is not None
        if number % 20:
            return False
        received = int(np.max(multihost_utils.process_allgather(np.int32(self.received or 0))))
        self.received = signal.Signals(received) if received else None
        return received > 0

    @property
    def exit_status(self) -> int:
        """The shell's convention: 128 and the signal's number."""
        return 128 + self.received
