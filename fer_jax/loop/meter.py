"""Reads each training step's sums, one step late, and passes them on to those who show or keep them."""

import time

import jax

from fer_jax.errors import Diverged
from fer_jax.loop.progress import Progress
from fer_jax.system.terminal import Terminal
from fer_jax.workdir.events import MetricsWriter


class Meter:
    """Follows one epoch of training.

    A step's sums are read when the next step has been given to the device, so that it never waits for the host. The
    clock of images_per_second runs from `start` to the last step read, and stands still from `flush` to `start`; steps
    read while it stands count in every figure but that and what follows from it. flops: what training computes for an
    image; peak: what the devices can at most, in FLOP/s, where that is known (see `flops`). most_skipped: see
    `Progress.add`.
    """

    def __init__(
        self,
        progress: Progress,
        writer: MetricsWriter,
        terminal: Terminal,
        *,
        epoch: int,
        log_every: int,
        flops: int,
        most_skipped: int = 0,
        peak: float | None,
    ):
        self._progress, self._writer, self._terminal = progress, writer, terminal
        self._flops, self._peak, self._most_skipped = flops, peak, most_skipped
        self._epoch, self._log_every = epoch, log_every
        self._pending = self._since = self._last = None
        self._images, self._seconds = 0, 0.0

    def start(self) -> None:
        """Starts the clock."""
        self._since = time.perf_counter()

    def push(self, step: int, sums: dict) -> None:
        """Takes the sums (on the device, [steps]) of the steps up to `step`, and reads those of the call before."""
        previous, self._pending = self._pending, (step, sums)
        if previous:
            self._read(*previous)

    def flush(self) -> None:
        """Reads what has not been read, so that the progress is that of the last step pushed."""
        if self._pending:
            self._read(*self._pending)
        self._pending = self._since = None

    def end_epoch(self) -> None:
        """Flushes, and writes the epoch's figures."""
        self.flush()
        if self._last and self._last["step"] % self._log_every:
            self._writer.write(**self._last)

    def _read(self, last: int, sums: dict) -> None:
        sums = jax.device_get(sums)
        if self._since is not None:
            now = time.perf_counter()
            self._images += int(sums["count"].sum())
            self._seconds += now - self._since
            self._since = now
        num_steps = len(sums["count"])
        for i in range(num_steps):
            self._take_in(last - num_steps + 1 + i, {key: value[i] for key, value in sums.items()})

    def _take_in(self, step: int, sums: dict) -> None:
        try:
            self._progress.add(sums, most_skipped=self._most_skipped)
        except Diverged as error:
            raise Diverged(f"{error} (step {step})") from None
        if self._progress.skipped_in_a_row:
            self._terminal.say(
                f"Step {step} is skipped: its loss or gradient is not finite ({self._progress.skipped} steps so far)."
            )
        self._last = {
            "step": step,
            "epoch": self._epoch,
            "kind": "train",
            **self._progress.mean(),
            "learning_rate": float(sums["learning_rate"]),
            **self.speed(),
        }
        self._terminal.step(self._last)
        if step % self._log_every == 0:
            self._writer.write(**self._last)
            self._terminal.log(self._last)

    def speed(self) -> dict[str, float]:
        """Gives images_per_second, tflops_per_second and, where the devices' peak is known, mfu, a share of it.

        Over the epoch so far, in this process's run; nan before the first step.
        """
        images_per_second = self._images / self._seconds if self._seconds else float("nan")
        flops_per_second = self._flops * images_per_second
        speed = {"images_per_second": images_per_second, "tflops_per_second": flops_per_second / 1e12}
        return speed | ({"mfu": flops_per_second / self._peak} if self._peak else {})
