"""When the metrics of steps are fetched, which events are made from them, and which steps are traced."""

import contextlib
import pathlib
import time

import jax.numpy as jnp
import pytest

from fer_jax.errors import Diverged
from fer_jax.loop.meter import Meter, Profiler
from fer_jax.loop.progress import Progress
from fer_jax.system.terminal import Terminal
from fer_jax.workdir.events import MetricsWriter, read_events
from fer_jax.workdir.paths import Workdir

BATCH = 8
FLOPS = 5 * 10**9


def make_sums(*steps: int) -> dict:
    """Returns the metric sums of a call's steps as the device returns them, different for each step."""
    return {
        "loss": jnp.array([step * 1.5 for step in steps], jnp.float32),
        "correct": jnp.array([step % BATCH for step in steps], jnp.int32),
        "count": jnp.array([BATCH for _ in steps], jnp.int32),
        "learning_rate": jnp.array([0.5**step for step in steps], jnp.float32),
    }


class Clock:
    """A clock that changes only when a test sets it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture
def follow(tmp_path):
    """Returns a function that makes a meter whose events are in tmp_path."""
    with contextlib.ExitStack() as stack:

        def make(progress: Progress, *, epoch: int = 1, log_every: int = 1, peak: float | None = None) -> Meter:
            writer = MetricsWriter(Workdir(tmp_path), step=0, epochs=0, common={}, is_primary=True)
            stack.callback(writer.close)
            terminal = Terminal(is_primary=True)
            return Meter(progress, writer, terminal, epoch=epoch, log_every=log_every, flops=FLOPS, peak=peak)

        yield make


def test_a_step_is_read_when_the_next_one_is_under_way(follow):
    progress = Progress()
    meter = follow(progress)
    meter.resume()
    for step in range(1, 5):
        meter.push(step, make_sums(step))
        assert progress.count == BATCH * (step - 1)
    meter.flush()
    assert progress.count == BATCH * 4
    assert progress.loss == 1.5 * (1 + 2 + 3 + 4)
    assert progress.correct == 1 + 2 + 3 + 4


def test_what_is_flushed_is_read_once(follow, tmp_path):
    progress = Progress()
    meter = follow(progress)
    meter.resume()
    meter.flush()
    assert progress.count == 0
    meter.push(1, make_sums(1))
    meter.flush()
    meter.flush()
    meter.push(2, make_sums(2))
    assert progress.count == BATCH
    meter.end_epoch()
    assert progress.count == 2 * BATCH
    assert [event["step"] for event in read_events(Workdir(tmp_path))] == [1, 2]


@pytest.mark.parametrize(
    ("log_every", "first", "last", "logged"),
    [
        (1, 1, 4, [1, 2, 3, 4]),
        (2, 1, 5, [2, 4, 5]),
        (2, 1, 4, [2, 4]),
        (5, 6, 10, [10]),
        (3, 6, 10, [6, 9, 10]),
        (50, 1, 5, [5]),
    ],
)
def test_events_come_at_multiples_of_log_every_and_at_the_end_once_each(
    log_every, first, last, logged, follow, tmp_path
):
    meter = follow(Progress(), epoch=3, log_every=log_every)
    meter.resume()
    for step in range(first, last + 1):
        meter.push(step, make_sums(step))
    meter.end_epoch()
    events = read_events(Workdir(tmp_path))
    assert [event["step"] for event in events] == logged
    assert {(event["epoch"], event["kind"]) for event in events} == {(3, "train")}


def test_an_event_holds_the_means_over_the_epoch_so_far_and_the_steps_own_learning_rate(follow, tmp_path):
    meter = follow(Progress(), log_every=2)
    meter.resume()
    for step in range(1, 6):
        meter.push(step, make_sums(step))
    meter.end_epoch()
    for event in read_events(Workdir(tmp_path)):
        steps = range(1, event["step"] + 1)
        assert event["loss"] == pytest.approx(sum(1.5 * step for step in steps) / (BATCH * len(steps)))
        assert event["accuracy"] == pytest.approx(sum(step % BATCH for step in steps) / (BATCH * len(steps)))
        assert event["learning_rate"] == 0.5 ** event["step"]


def test_an_epoch_begun_in_another_process_counts_in_the_means_but_not_in_the_speed(follow, tmp_path, clock):
    meter = follow(Progress(loss=100.0, correct=10, count=40))
    meter.resume()
    meter.push(6, make_sums(6))
    clock.now += 2
    meter.end_epoch()
    (event,) = read_events(Workdir(tmp_path))
    assert event["loss"] == pytest.approx((100 + 9) / 48)
    assert event["accuracy"] == pytest.approx(16 / 48)
    assert event["images_per_second"] == BATCH / 2


def test_an_epoch_without_steps_left_writes_nothing(follow, tmp_path):
    meter = follow(Progress(loss=1.0, correct=1, count=40))
    meter.resume()
    meter.end_epoch()
    assert read_events(Workdir(tmp_path)) == []


def test_images_per_second_is_over_the_epoch_so_far(follow, tmp_path, clock):
    meter = follow(Progress())
    meter.resume()
    for step, seconds in enumerate([1, 2, 5], 1):
        clock.now += seconds
        meter.push(step, make_sums(step))
    clock.now += 8
    meter.end_epoch()
    # Step 1 is read when step 2 is pushed, after 1 + 2 seconds.
    speeds = [event["images_per_second"] for event in read_events(Workdir(tmp_path))]
    assert speeds == [BATCH / 3, 2 * BATCH / 8, 3 * BATCH / 16]
    assert meter.speed()["images_per_second"] == 3 * BATCH / 16


def test_tflops_and_mfu_follow_from_images_per_second(follow, tmp_path, clock):
    events = []
    for peak in (None, 8e10):
        meter = follow(Progress(), peak=peak)
        meter.resume()
        meter.push(1, make_sums(1))
        clock.now += 2
        meter.end_epoch()
        events += read_events(Workdir(tmp_path))
    unknown, known = events
    assert unknown["tflops_per_second"] == known["tflops_per_second"] == BATCH / 2 * FLOPS / 1e12
    assert known["mfu"] == BATCH / 2 * FLOPS / 8e10
    assert "mfu" not in unknown


def test_the_clock_stands_still_from_pause_to_resume(follow, clock):
    meter = follow(Progress())
    meter.resume()
    meter.push(1, make_sums(1))
    clock.now += 2
    meter.pause()
    clock.now += 1000  # a checkpoint is saved
    meter.resume()
    meter.push(2, make_sums(2))
    clock.now += 2
    meter.end_epoch()
    clock.now += 1000  # the epoch is evaluated
    assert meter.speed()["images_per_second"] == 2 * BATCH / 4


def test_steps_read_while_the_clock_stands_count_in_everything_but_the_speed(follow, tmp_path, clock):
    meter = follow(Progress())
    meter.resume()
    meter.push(1, make_sums(1))
    clock.now += 2
    meter.pause()
    clock.now += 1000  # the next two are traced
    meter.push(2, make_sums(2))
    meter.push(3, make_sums(3))
    clock.now += 1000
    meter.flush()
    meter.resume()
    clock.now += 2
    meter.push(4, make_sums(4))
    meter.end_epoch()
    last = read_events(Workdir(tmp_path))[-1]
    assert last["loss"] == pytest.approx(1.5 * 10 / (4 * BATCH))
    assert last["images_per_second"] == 2 * BATCH / 4


@pytest.mark.parametrize("steps_per_call", [2, 3, 7])
def test_a_call_of_several_steps_gives_the_events_of_single_steps(steps_per_call, follow, tmp_path):
    figures = []
    for size in (1, steps_per_call):
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        meter = follow(Progress(), log_every=2)
        meter.resume()
        for first in range(1, 8, size):
            steps = range(first, min(first + size, 8))
            meter.push(steps[-1], make_sums(*steps))
        meter.end_epoch()
        figures.append(
            [event | {"images_per_second": None, "tflops_per_second": None} for event in read_events(Workdir(tmp_path))]
        )
    assert [event["step"] for event in figures[0]] == [2, 4, 6, 7]
    assert figures[0] == figures[1]


def test_a_loss_that_is_not_finite_stops_before_its_event_is_written(follow, tmp_path):
    progress = Progress()
    meter = follow(progress)
    meter.resume()
    meter.push(1, make_sums(1))
    meter.push(2, make_sums(2) | {"loss": jnp.array([float("nan")], jnp.float32)})
    with pytest.raises(Diverged):
        meter.push(3, make_sums(3))
    assert progress.count == BATCH
    assert [event["step"] for event in read_events(Workdir(tmp_path))] == [1]


def test_the_clock_runs_again_when_every_pause_has_ended(follow, clock):
    meter = follow(Progress())
    meter.resume()
    meter.push(1, make_sums(1))
    clock.now += 2
    meter.pause()  # a trace begins
    clock.now += 500
    meter.push(2, make_sums(2))
    meter.pause()  # a checkpoint is saved during the trace
    clock.now += 500
    meter.resume()
    meter.push(3, make_sums(3))
    clock.now += 500
    meter.flush()
    meter.resume()  # the trace has ended
    meter.push(4, make_sums(4))
    clock.now += 2
    meter.end_epoch()
    assert meter.speed()["images_per_second"] == 2 * BATCH / 4


def traces_in(folder: pathlib.Path) -> list[pathlib.Path]:
    return list(folder.rglob("*.xplane.pb"))


def take_steps(profiler: Profiler, meter: Meter, clock: Clock, first: int, last: int) -> None:
    for step in range(first, last):
        profiler.follow(step, meter)
        clock.now += 1 if not profiler.is_tracing else 1000
        meter.push(step + 1, make_sums(step + 1))


def test_traced_steps_are_written_and_count_in_no_speed(follow, tmp_path, clock):
    meter = follow(Progress(), log_every=100)
    profiler = Profiler(tmp_path / "profile", num_steps=3, first_step=0, steps_per_epoch=40)
    meter.resume()
    take_steps(profiler, meter, clock, 0, 10)
    assert not traces_in(tmp_path)
    take_steps(profiler, meter, clock, 10, 12)
    meter.pause()  # a checkpoint is saved during the traced steps
    meter.resume()
    take_steps(profiler, meter, clock, 12, 20)
    assert len(traces_in(tmp_path)) == 1
    profiler.stop(meter)
    meter.end_epoch()
    assert meter.speed()["images_per_second"] == BATCH  # one second a step


def test_a_trace_ends_with_the_epoch(follow, tmp_path, clock):
    meter = follow(Progress(), log_every=100)
    profiler = Profiler(tmp_path / "profile", num_steps=30, first_step=0, steps_per_epoch=20)
    meter.resume()
    take_steps(profiler, meter, clock, 0, 20)
    assert not traces_in(tmp_path)
    profiler.stop(meter)
    assert len(traces_in(tmp_path)) == 1
    assert not profiler.is_tracing


def test_an_epoch_of_few_steps_is_traced_from_its_half_on(follow, tmp_path, clock):
    meter = follow(Progress(), log_every=100)
    profiler = Profiler(tmp_path / "profile", num_steps=1, first_step=5, steps_per_epoch=5)
    meter.resume()
    take_steps(profiler, meter, clock, 5, 10)
    assert len(traces_in(tmp_path)) == 1
