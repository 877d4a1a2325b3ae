"""The lock of a workdir, between this process and others."""

import subprocess
import sys

import pytest

from fer_jax.errors import UserError
from fer_jax.workdir import lock

OWNER = """
import pathlib, sys
from fer_jax.workdir import lock
with lock.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_owner_is_refused_until_the_first_is_gone_however_it_ends(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by a run, process {owner.pid} on "), lock.hold(tmp_path):
            pass
        owner.kill()
        owner.wait()
    for _ in range(2):
        with lock.hold(tmp_path):
            pass
