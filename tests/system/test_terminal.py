"""Output that nobody reads any more: processes whose pipe has lost its reader, or whose terminal is closed."""

import os
import pathlib
import pty
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Prints a line, waits until it can read one, and prints more than a pipe holds.
TALK = """
import sys
from fer_jax.errors import UserError
from fer_jax.system import exits
from fer_jax.system.terminal import Terminal
terminal = Terminal(is_primary=True)
terminal.say("first")
terminal.warn("first")
sys.stdin.readline()
for number in range(3000):
    terminal.say(f"line {number:090d}")
    terminal.warn(f"line {number:090d}")
open(sys.argv[1], "w").write("went on")
def fail():
    raise UserError("the end")
sys.exit(exits.run(fail))
"""


def start(path: pathlib.Path, **streams) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", TALK, path], cwd=ROOT, stdin=subprocess.PIPE, text=True, **streams)


def end(process: subprocess.Popen) -> int:
    process.stdin.write("\n")
    process.stdin.close()
    return process.wait(60)


def test_a_process_goes_on_without_the_reader_of_its_output_and_says_the_rest_of_its_warnings(tmp_path):
    with open(tmp_path / "err", "w+") as err:
        process = start(tmp_path / "done", stdout=subprocess.PIPE, stderr=err)
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        assert end(process) == 2
        err.seek(0)
        lines = err.read().splitlines()
    assert (tmp_path / "done").read_text() == "went on"
    assert len(lines) == 3002
    assert lines[0] == "fer_jax: warning: first"
    assert lines[-1] == "fer_jax: the end"
    assert lines[-2].startswith("fer_jax: warning: line 0000")


def test_a_process_goes_on_without_anybody_who_reads(tmp_path):
    process = start(tmp_path / "done", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    assert end(process) == 2
    assert (tmp_path / "done").read_text() == "went on"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a closed terminal answers in another way")
def test_a_process_goes_on_when_its_terminal_is_closed(tmp_path):
    ours, theirs = pty.openpty()
    process = start(tmp_path / "done", stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert b"first" in os.read(ours, 100)
    os.close(ours)
    assert end(process) == 2
    assert (tmp_path / "done").read_text() == "went on"


def test_an_error_of_writing_to_a_reader_that_is_there_is_an_error(tmp_path):
    with open("/dev/full", "w") as full:
        process = start(tmp_path / "done", stdout=full, stderr=subprocess.PIPE)
        end(process)
    assert process.returncode != 0
    assert "No space left on device" in process.stderr.read()
    process.stderr.close()
    assert not (tmp_path / "done").exists()
