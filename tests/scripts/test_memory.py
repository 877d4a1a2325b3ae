"""The peak memory of a command, and of nothing else."""

import subprocess
import sys

import pytest

from scripts.benchmark import memory


def test_a_peak_is_what_the_command_had_at_most():
    measure = "import sys; from scripts.benchmark import memory; print(memory.peak_bytes(sys.argv[1:]))"
    few, many = (
        # In a process of its own: a child's peak is never below its parent's memory, here that of the whole suite.
        int(subprocess.check_output([sys.executable, "-c", measure, sys.executable, "-c", f"b'x' * {size}; b'x' * 10"]))
        for size in (0, 200_000_000)
    )
    assert 190e6 < many - few < 210e6


def test_a_command_that_fails_has_no_peak():
    with pytest.raises(SystemExit, match=r"exit\(3\) failed"):
        memory.peak_bytes([sys.executable, "-c", "exit(3)"])
