"""Prints a run's messages to its user: lines on standard output, and a progress bar if there is a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import tqdm

from fer_jax.system import streams

T = TypeVar("T")


class Terminal:
    """The output for a user: a bar for each epoch if standard error is a terminal, otherwise plain lines.

    If nobody reads the output any more, lines go nowhere and nothing fails: Ctrl-C also ends the `tee` of a pipe, and
    the run must still be saved.
    """

    def __init__(self, *, is_primary: bool):
        self._is_primary = is_primary
        self._bar = None

    def start_epoch(self, title: str, *, first: int, total: int) -> None:
        """Opens the bar of an epoch of `total` steps, of which `first` are done."""
        # In a log file a bar would be thousands of lines.
        if self._is_primary and sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                total=total,
                initial=first,
                desc=title,
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} {bar} {n_fmt}/{total_fmt}{postfix}, {remaining} left",
            )

    def step(self, event: dict) -> None:
        """Advances the bar, if there is one, by a training step."""
        if self._bar is not None:
            self._bar.set_postfix_str(_figures(event), refresh=False)
            self._bar.update()

    def log(self, event: dict) -> None:
        """Prints a training event as a line, if there is no bar to show it."""
        if self._bar is None:
            self.say(f"  step {event['step']:>6}  {_figures(event)}")

    def end_epoch(self) -> None:
        """Closes the bar, if there is one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._is_primary:
            # Plain print would write into the bar.
            with streams.unheard(sys.stdout):
                tqdm.tqdm.write(line, file=sys.stdout)

    def warn(self, line: str) -> None:
        """Prints a warning to standard error, above the bar if there is one."""
        if self._is_primary:
            with streams.unheard(sys.stderr):
                tqdm.tqdm.write(f"fer_jax: warning: {line}", file=sys.stderr)

    def progress(self, items: Iterable[T], *, title: str, total: int) -> Iterator[T]:
        """Yields the items, with a bar if standard error is a terminal, otherwise after one line."""
        if not self._is_primary:
            yield from items
        # The bar is on standard error, so that standard output can be kept in a file.
        elif sys.stderr.isatty():
            yield from tqdm.tqdm(items, desc=title, total=total, leave=False, dynamic_ncols=True)
        else:
            self.say(f"{title} ({total:,})")
            yield from items


# For callers that read data without a user to inform.
SILENT = Terminal(is_primary=False)


def describe_speed(speed: dict[str, float]) -> str:
    """Returns images_per_second, tflops_per_second and mfu, if present, as text."""
    mfu = f", MFU {speed['mfu']:.1%}" if "mfu" in speed else ""
    return f"{speed['images_per_second']:.0f} images/s, {speed['tflops_per_second']:.3g} TFLOP/s{mfu}"


def _figures(event: dict) -> str:
    return f"loss {event['loss']:.3f}, accuracy {event['accuracy']:.1%}, {describe_speed(event)}"
