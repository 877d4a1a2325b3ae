"""The events of a run in metrics.jsonl, in TensorBoard and on the terminal."""

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from fer_jax.system.terminal import Terminal
from fer_jax.workdir.events import MetricsWriter, read_events
from fer_jax.workdir.paths import Workdir

SPEED = {"images_per_second": 100.0, "tflops_per_second": 0.1}
ROOT = pathlib.Path(__file__).parents[2]
COMMON = {"dataset": "tiny.csv", "dataset_fingerprint": "0123456789abcdef"}
# Two epochs of five steps, with a training event at every second step and at the epoch's end.
EVENTS = [
    {"step": 2, "epoch": 1, "kind": "train", "loss": 1.5, "accuracy": 0.25, "learning_rate": 1e-3},
    {"step": 4, "epoch": 1, "kind": "train", "loss": 1 / 3, "accuracy": 0.5, "learning_rate": 1e-3},
    {"step": 5, "epoch": 1, "kind": "train", "loss": 0.1, "accuracy": 0.75, "learning_rate": 5e-4},
    {"step": 5, "epoch": 1, "kind": "validation", "loss": 0.7, "accuracy": 0.625},
    {"step": 6, "epoch": 2, "kind": "train", "loss": 1e-9, "accuracy": 0.8, "learning_rate": 5e-4},
    {"step": 8, "epoch": 2, "kind": "train", "loss": 0.05, "accuracy": 0.9, "learning_rate": 5e-4},
    {"step": 10, "epoch": 2, "kind": "train", "loss": 0.04, "accuracy": 1.0, "learning_rate": 0.0},
    {"step": 10, "epoch": 2, "kind": "validation", "loss": 0.6, "accuracy": 0.65},
]


@contextlib.contextmanager
def opened(workdir, *, step=0, epochs=0, is_primary=True):
    writer = MetricsWriter(Workdir(workdir), step=step, epochs=epochs, common=COMMON, is_primary=is_primary)
    with contextlib.closing(writer):
        yield writer


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Returns a workdir in which all of EVENTS have been written."""
    workdir = tmp_path_factory.mktemp("run")
    with opened(workdir) as writer:
        for event in EVENTS:
            writer.write(**event)
    return workdir


def test_an_event_is_one_json_object_on_a_line_of_its_own(written):
    lines = (written / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [event | COMMON for event in EVENTS]
    assert read_events(Workdir(written)) == [event | COMMON for event in EVENTS]


def test_an_event_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    with opened(tmp_path) as writer:
        for number, event in enumerate(EVENTS, 1):
            writer.write(**event)
            assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == number


def test_in_a_bucket_where_a_flush_uploads_the_file_events_wait_for_a_save(tmp_path, monkeypatch):
    monkeypatch.setattr(Workdir, "is_in_bucket", True)
    with opened(tmp_path) as writer:
        for event in EVENTS:
            writer.write(**event)
        assert (tmp_path / "metrics.jsonl").read_bytes() == b""
        writer.sync()
        assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == len(EVENTS)


@pytest.mark.parametrize(
    ("step", "epochs", "kept"),
    [
        (0, 0, []),
        (3, 0, [0]),
        (5, 1, [0, 1, 2, 3]),
        # This checkpoint was saved while the first epoch was being evaluated; the evaluation is repeated.
        (5, 0, [0, 1, 2]),
        (7, 1, [0, 1, 2, 3, 4]),
        (10, 1, [0, 1, 2, 3, 4, 5, 6]),
        (10, 2, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_going_on_drops_the_events_that_will_be_made_again(step, epochs, kept, written, tmp_path):
    lines = (written / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
    with opened(tmp_path, step=step, epochs=epochs) as writer:
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(lines[i] for i in kept)
        writer.write(**EVENTS[-1])
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(lines[i] for i in [*kept, -1])
    assert [path.name for path in tmp_path.iterdir() if "tfevents" not in path.name] == ["metrics.jsonl"]


@given(data=st.data())
def test_a_file_cut_off_anywhere_keeps_its_whole_lines(written, tmp_path_factory, data):
    workdir = tmp_path_factory.mktemp("cut")
    whole = (written / "metrics.jsonl").read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    (workdir / "metrics.jsonl").write_bytes(whole[:cut])
    # A line that is cut off is dropped, unless nothing but its newline is missing.
    number = sum(1 for line in whole[: cut + 1].splitlines(keepends=True) if line.endswith(b"\n"))
    assert read_events(Workdir(workdir)) == [event | COMMON for event in EVENTS[:number]]


def test_a_run_goes_on_after_a_line_cut_off_in_the_middle(written, tmp_path):
    whole = (written / "metrics.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:30])
    with opened(tmp_path, step=4, epochs=0) as writer:
        for event in EVENTS[2:]:
            writer.write(**event)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_a_run_without_events_has_none(tmp_path):
    assert read_events(Workdir(tmp_path)) == []


def test_only_the_primary_process_writes(tmp_path, capsys):
    with opened(tmp_path, is_primary=False) as writer:
        writer.write(**EVENTS[0])
    terminal = Terminal(is_primary=False)
    terminal.start_epoch("epoch 1/2", first=0, total=5)
    terminal.step(EVENTS[0] | SPEED)
    terminal.say("a line")
    terminal.end_epoch()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_tensorboard_has_the_scalars(written):
    (path,) = written.glob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(path)).Reload()
    kinds = {"train": {"loss", "accuracy", "learning_rate"}, "validation": {"loss", "accuracy"}}
    assert set(accumulator.Tags()["tensors"]) == {f"{kind}/{key}" for kind, keys in kinds.items() for key in keys}
    for kind, keys in kinds.items():
        for key in keys:
            found = [
                (point.step, float(tensor_util.make_ndarray(point.tensor_proto)))
                for point in accumulator.Tensors(f"{kind}/{key}")
            ]
            expected = [(event["step"], event[key]) for event in EVENTS if event["kind"] == kind]
            assert [step for step, _ in found] == [step for step, _ in expected]
            assert [value for _, value in found] == pytest.approx([value for _, value in expected])


# Three of the epoch's six steps were done before. The pauses allow the bar to be drawn at each step.
SCRIPT = textwrap.dedent("""
    import time
    from fer_jax.system.terminal import Terminal

    terminal = Terminal(is_primary=True)
    terminal.say("before the epoch")
    terminal.start_epoch("epoch  2/25", first=3, total=6)
    for step in range(3):
        time.sleep(0.2)
        speed = {"images_per_second": 1234.5 + step, "tflops_per_second": 12.34567}
        terminal.step({"loss": 1.25 - step / 4, "accuracy": 0.5 + step / 10, **speed})
        if step == 1:
            terminal.say("within the epoch")
    terminal.end_epoch()
    terminal.say("after the epoch")
""")


@pytest.fixture(scope="session")
def screen() -> str:
    """Returns everything that a child process running SCRIPT sends to its terminal of 100 columns."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    child = subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=follower, stdout=follower, stderr=follower, cwd=ROOT)
    os.close(follower)
    sent = b""
    # Reading from a terminal that no process holds open any more is an error.
    with contextlib.suppress(OSError):
        while part := os.read(leader, 65536):
            sent += part
    os.close(leader)
    assert child.wait() == 0
    return sent.decode()


def test_a_terminal_shows_a_bar_with_the_epochs_figures(screen):
    drawn = [part.rstrip() for part in re.split(r"[\r\n]+", screen) if part.startswith("epoch  2/25")]
    first, last = drawn[0], drawn[-1]
    assert "3/6" in first
    assert re.match(
        r"epoch  2/25 .*█.* 6/6, loss 0\.750, accuracy 70\.0%, 123[67] images/s, 12\.3 TFLOP/s, .* left$", last
    ), last
    assert any(re.search(r"4/6, loss 1\.250, accuracy 50\.0%, .* \d\d:\d\d left$", part) for part in drawn), drawn
    assert all(len(part) <= 100 for part in drawn)


def test_lines_are_said_above_the_bar_which_is_gone_in_the_end(screen):
    rows = []
    for row in screen.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in row.split("\r"):  # text after a carriage return overwrites the earlier text
            shown = part + shown[len(part) :]
        rows.append(shown.rstrip())
    assert [row for row in rows if row] == ["before the epoch", "within the epoch", "after the epoch"]


def test_without_a_terminal_there_are_the_lines_that_are_said_and_nothing_else(capsys):
    terminal = Terminal(is_primary=True)
    terminal.say("before the epoch")
    terminal.start_epoch("epoch 1/2", first=0, total=5)
    for event in EVENTS[:3]:
        terminal.step(event | SPEED)
        terminal.say(f"step {event['step']}")
    terminal.end_epoch()
    terminal.say("after the epoch")
    assert capsys.readouterr() == ("before the epoch\nstep 2\nstep 4\nstep 5\nafter the epoch\n", "")


def test_without_a_bar_a_logged_step_is_a_line(capsys):
    terminal = Terminal(is_primary=True)
    event = {"step": 50, "loss": 1.25, "accuracy": 0.5, "images_per_second": 147.2, "tflops_per_second": 0.16871}
    terminal.log(event)
    terminal.log(event | {"mfu": 0.3456})
    assert capsys.readouterr().out == (
        "  step     50  loss 1.250, accuracy 50.0%, 147 images/s, 0.169 TFLOP/s\n"
        "  step     50  loss 1.250, accuracy 50.0%, 147 images/s, 0.169 TFLOP/s, MFU 34.6%\n"
    )


def refuse(constant):
    raise AssertionError(constant)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), np.float64("nan")])
def test_what_is_not_finite_is_left_out_since_json_has_no_word_for_it(value, tmp_path):
    with opened(tmp_path) as writer:
        writer.write(step=1, epoch=1, kind="train", loss=value, accuracy=0.5)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "epoch": 1, "kind": "train", "accuracy": 0.5} | COMMON


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_version_0_1_wrote_instead_is_read_as_absent_and_rewritten(constant, tmp_path):
    line = f'{{"step": 1, "epoch": 1, "kind": "train", "loss": {constant}, "accuracy": 0.5}}\n'
    (tmp_path / "metrics.jsonl").write_text(line)
    expected = {"step": 1, "epoch": 1, "kind": "train", "accuracy": 0.5}
    assert read_events(Workdir(tmp_path)) == [expected]
    with opened(tmp_path, step=1, epochs=0):
        pass
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse) == expected


STALLED = """
import os, sys, time
from fer_jax.workdir.events import MetricsWriter
from fer_jax.workdir.paths import Workdir

writer = MetricsWriter(Workdir(sys.argv[1], storage_timeout=4), step=0, epochs=0, common={}, is_primary=True)
writer.write(step=1, epoch=1, kind="train", loss=0.5)
os.fsync = lambda _: time.sleep(60)
writer.sync()
"""


def test_a_disk_that_does_not_answer_to_fsync_is_given_up(tmp_path):
    child = subprocess.run([sys.executable, "-c", STALLED, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 4, child.stderr
    assert f"fer_jax: {tmp_path}: the file system hasn't answered in 4 s" in child.stderr
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 0.5


def test_warnings_and_progress_without_a_terminal(capsys):
    terminal = Terminal(is_primary=True)
    terminal.warn("mind this")
    assert list(terminal.progress([1, 2], title="Counting", total=2)) == [1, 2]
    assert list(Terminal(is_primary=False).progress([1, 2], title="Counting", total=2)) == [1, 2]
    assert capsys.readouterr() == ("Counting (2)\n", "fer_jax: warning: mind this\n")
