"""Turns the metric sums of training steps into events and speed, and traces a few steps on demand."""

import os
import time

import jax
from etils import epath

from fer_jax.errors import Diverged
from fer_jax.loop.progress import Progress
from fer_jax.system.terminal import Terminal
from fer_jax.workdir.events import MetricsWriter

# The first steps of a process are slower than the rest: caches, allocators and the pipeline settle.
_STEPS_BEFORE_TRACE = 10


class Meter:
    """Accumulates the metrics of one epoch.

    Metrics are fetched one call late so that the device never waits for the host. The throughput clock is paused at
    first; `resume` starts it. Pauses may be nested: the clock runs when each has been resumed. Steps that are fetched
    while it is paused count in loss and accuracy, but not in images_per_second, TFLOP/s and MFU.

    Args:
      flops: the FLOPs of training on one image. peak: the peak FLOP/s of all devices, None if unknown.
      max_consecutive_skips: see `Progress.add`.
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
        max_consecutive_skips: int = 0,
        peak: float | None,
    ):
        self._progress, self._writer, self._terminal = progress, writer, terminal
        self._flops, self._peak, self._max_consecutive_skips = flops, peak, max_consecutive_skips
        self._epoch, self._log_every = epoch, log_every
        self._pending = self._since = self._last = None
        self._images, self._seconds = 0, 0.0
        self._num_pauses = 1

    def resume(self) -> None:
        """Ends one pause of the throughput clock."""
        self._num_pauses -= 1
        if not self._num_pauses:
            self._since = time.perf_counter()

    def pause(self) -> None:
        """Fetches the pending metrics, so that the progress includes the last step, and pauses the throughput clock."""
        self.flush()
        self._num_pauses += 1
        self._since = None

    def push(self, step: int, metric_sums: dict) -> None:
        """Takes a call's metric sums (on the device, [steps]), up to `step`; fetches those of the previous call."""
        # One call late: fetching the newest would make the host wait for the device, and then the device for the host.
        previous, self._pending = self._pending, (step, metric_sums)
        if previous:
            self._fetch(*previous)

    def flush(self) -> None:
        """Fetches the pending metrics."""
        pending, self._pending = self._pending, None
        if pending:
            self._fetch(*pending)

    def end_epoch(self) -> None:
        """Pauses the clock and writes the epoch's last event."""
        self.pause()
        if self._last and self._last["step"] % self._log_every:
            self._writer.write(**self._last)

    def speed(self) -> dict[str, float]:
        """Returns images_per_second, tflops_per_second and, if the devices' peak is known, mfu, the share of it.

        They are averages over the part of the epoch that this process has trained; NaN before the first step.
        """
        images_per_second = self._images / self._seconds if self._seconds else float("nan")
        flops_per_second = self._flops * images_per_second
        speed = {"images_per_second": images_per_second, "tflops_per_second": flops_per_second / 1e12}
        return speed | ({"mfu": flops_per_second / self._peak} if self._peak else {})

    def _fetch(self, last: int, metric_sums: dict) -> None:
        metric_sums = jax.device_get(metric_sums)
        # While the clock is paused the time belongs to a checkpoint or a trace, not to these steps.
        if self._since is not None:
            now = time.perf_counter()
            self._images += int(metric_sums["count"].sum())
            self._seconds += now - self._since
            self._since = now
        num_steps = len(metric_sums["count"])
        for i in range(num_steps):
            self._take_in(last - num_steps + 1 + i, {key: value[i] for key, value in metric_sums.items()})

    def _take_in(self, step: int, metric_sums: dict) -> None:
        try:
            self._progress.add(metric_sums, max_consecutive_skips=self._max_consecutive_skips)
        except Diverged as error:
            # Only here is the step known, since metrics are fetched one call late.
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
            "learning_rate": float(metric_sums["learning_rate"]),
            **self.speed(),
        }
        self._terminal.step(self._last)
        if step % self._log_every == 0:
            self._writer.write(**self._last)
            self._terminal.log(self._last)


class Profiler:
    """Traces up to `num_steps` steps of one epoch; with None it does nothing.

    TensorBoard (with its profile plugin) and xprof open the trace in `directory`. It begins once this process has taken
    ten steps, or half of a shorter epoch. It ends with the epoch at the latest, so that no evaluation is traced. The
    meter's clock is paused during the trace.
    """

    def __init__(self, directory: epath.Path, *, num_steps: int | None, first_step: int, steps_per_epoch: int):
        self._directory = directory
        self._first = first_step + min(_STEPS_BEFORE_TRACE, steps_per_epoch // 2)
        self._num_steps = num_steps
        self._end: int | None = None

    @property
    def is_tracing(self) -> bool:
        return self._end is not None

    def follow(self, step: int, meter: Meter) -> None:
        """Starts or ends the trace if that is due before `step`."""
        if self.is_tracing and step >= self._end:
            self.stop(meter)
        elif self._num_steps and step >= self._first:
            meter.pause()
            jax.profiler.start_trace(os.fspath(self._directory))
            self._end, self._num_steps = step + self._num_steps, None

    def stop(self, meter: Meter | None = None) -> None:
        """Ends the trace, if there is one, and writes it; resumes the clock of `meter`."""
        if not self.is_tracing:
            return
        if meter:
            meter.flush()  # the last step may still be running until its metrics are fetched
        jax.profiler.stop_trace()
        self._end = None
        if meter:
            meter.resume()
