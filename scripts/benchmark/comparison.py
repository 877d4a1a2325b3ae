"""Compares contestants in turns: measures, summarises and tabulates them."""

import contextlib
import statistics
import sys
import time
from collections.abc import Callable

from scripts.benchmark.peers.worker import Worker

# Thread pools spin for a while when their work is done; the next turn begins when they sleep.
PAUSE_SECONDS = 0.3


def measure_in_turn(turns: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Takes turns for `rounds` rounds after one that isn't counted; returns the results of each, round by round."""
    seconds = {name: [] for name in turns}
    for _ in range(rounds + 1):
        for name, turn in turns.items():
            time.sleep(PAUSE_SECONDS)
            seconds[name].append(turn())
    return {name: values[1:] for name, values in seconds.items()}


def speed_of(values: list[float], *, images: int) -> dict:
    """Returns the median, minimum and maximum seconds of a call, and the median's images/s; images: per call."""
    median = statistics.median(values)
    return {"median": median, "min": min(values), "max": max(values), "images_per_second": images / median}


def describe_other_networks(workers: dict[str, Worker]) -> str:
    """Returns an error message if the workers' networks differ in their numbers of parameters, else an empty string."""
    counts = {name: worker.num_parameters for name, worker in workers.items()}
    are_equal = len(set(counts.values()) - {0}) <= 1
    return "" if are_equal else f"these are not the same network, by their numbers of parameters: {counts}"


def summarize(seconds: dict[str, list[float]], *, images: int) -> dict[str, dict]:
    """Returns each contestant's figures; images: per call. ratios: to the first one's seconds, round by round."""
    first = next(iter(seconds.values()))
    figures = {}
    for name, values in seconds.items():
        ratios = [value / reference for value, reference in zip(values, first, strict=True)]
        figures[name] = {"seconds": values} | speed_of(values, images=images)
        figures[name] |= {"ratios": ratios, "ratio": statistics.median(ratios)}
    return figures


def table(comparison: dict) -> str:
    """Returns a comparison as a table in plain text."""
    lines = [
        f"{comparison['title']}, {comparison['rounds']} rounds",
        f"{'':<24}{'median ms':>12}{'min..max':>22}{'images/s':>12}{'times the first':>18}{'min..max':>16}",
    ]
    for name, figures in comparison["contestants"].items():
        spread = f"{figures['min'] * 1e3:,.2f}..{figures['max'] * 1e3:,.2f}"
        ratios = f"{min(figures['ratios']):.2f}..{max(figures['ratios']):.2f}"
        rate = f"{figures['images_per_second']:,.0f}" if figures["images_per_second"] else ""
        lines.append(
            f"{name:<24}{figures['median'] * 1e3:>12,.2f}{spread:>22}{rate:>12}{figures['ratio']:>18.3f}{ratios:>16}"
        )
    return "\n".join(lines + [f"{name} is left out: {reason}" for name, reason in comparison["left_out"].items()])


def compare(title: str, specs: dict[str, dict], *, rounds: int, calls: int, images: int) -> dict:
    """Starts a worker for each spec and measures them in turn; their networks must have equally many parameters.

    calls: per turn. images: per call.
    """
    workers, left_out = {}, {}
    with contextlib.ExitStack() as stack:
        for name, spec in specs.items():
            print(f"{title}: starting {name}", file=sys.stderr)
            try:
                workers[name] = stack.enter_context(Worker(spec))
            except (ModuleNotFoundError, RuntimeError) as error:
                left_out[name] = str(error)
        if not workers:
            sys.exit(f"{title}: nothing to measure: {left_out}")
        if wrong := describe_other_networks(workers):
            raise AssertionError(wrong)
        turns = {name: lambda worker=worker: worker.measure(calls) for name, worker in workers.items()}
        figures = summarize(measure_in_turn(turns, rounds), images=images)
    for name, worker in workers.items():
        figures[name] |= {"spec": specs[name], "versions": worker.versions}
    return {"title": title, "rounds": rounds, "calls": calls, "contestants": figures, "left_out": left_out}
