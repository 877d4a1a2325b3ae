"""SIGTERM, SIGINT and SIGHUP as a flag that a loop reads where it can stop cleanly."""

import signal

# Several processes ask each other whether to stop, which takes time, so they do it at every 20th call of the program.
_ASK_EVERY = 20


class Stopped(Exception):
    """A signal asked this process, or another process of its run, to stop.

    Attributes:
      exit_status: 128 plus the signal's number, as a shell reports it.
    """

    def __init__(self, received: signal.Signals):
        super().__init__(f"stopped by {received.name}")
        self.signal = received
        self.exit_status = 128 + received


class StopRequest:
    """Within the `with` block, the first SIGTERM, SIGINT or SIGHUP only sets `received`.

    The previous handlers are then restored, so a second signal terminates the process. A SIGHUP that was ignored
    before (nohup) stays ignored.

    Attributes:
      received: the signal, or None.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._previous = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Under nohup the hang-up of a terminal is not meant for the run.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                # The previous handler is kept, so that a second signal acts as the first would have.
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        self._restore()

    def _note(self, number, _frame):
        # The handler does nothing else, because it may interrupt any line.
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self):
        while self._previous:
            signal.signal(*self._previous.popitem())

    def should_stop(self, number: int) -> bool:
        """Returns whether to stop before step `number`. All processes of a run get the same answer.

        Every process must ask about the same steps, since they communicate.
        """
        import jax  # imported here, so that a mistake on the command line need not wait for it

        if jax.process_count() == 1:
            return self.received is not None
        if number % _ASK_EVERY:
            return False
        import numpy as np
        from jax.experimental import multihost_utils

        received = int(np.max(multihost_utils.process_allgather(np.int32(self.received or 0))))
        # Not reset: a signal may have arrived during the call, and counts at the next question.
        if received:
            self.received = signal.Signals(received)
        return received > 0

    def check(self, number: int) -> None:
        """Raises Stopped if the run must stop before step `number` (see `should_stop`)."""
        if self.should_stop(number):
            raise Stopped(self.received)
