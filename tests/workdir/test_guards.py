"""The lock of a workdir against other processes, and the time limit for a file system to answer."""

import errno
import fcntl
import subprocess
import sys
import time

import pytest

from fer_jax.errors import StorageError, UserError
from fer_jax.system.terminal import Terminal
from fer_jax.workdir import guards
from fer_jax.workdir.paths import Workdir

SILENT = Terminal(is_primary=False)
OWNER = """
import sys
from fer_jax.system.terminal import Terminal
from fer_jax.workdir import guards
from fer_jax.workdir.paths import Workdir
with guards.hold_lock(Workdir(sys.argv[1]), Terminal(is_primary=False)):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_owner_is_refused_until_the_first_is_gone_however_it_ends(tmp_path):
    workdir = Workdir(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout.readline() == "held\n"
        refused = pytest.raises(UserError, match=f"in use by a run, process {owner.pid} on ")
        with refused, guards.hold_lock(workdir, SILENT):
            pass
        owner.kill()
        owner.wait()
    for _ in range(2):
        with guards.hold_lock(workdir, SILENT):
            pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP])
def test_a_file_system_without_locks_is_trained_on_with_a_warning(number, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with guards.hold_lock(Workdir(tmp_path), Terminal(is_primary=True)):
        pass
    assert capsys.readouterr().err == (
        f"fer_jax: warning: {tmp_path} is on a file system without locks: see that only one run uses it.\n"
    )


def test_another_error_of_a_lock_is_an_error(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match=f"{tmp_path}: .*broken"), guards.hold_lock(Workdir(tmp_path), SILENT):
        pass


def test_a_body_that_waits_too_long_ends_the_process_with_the_path_and_status_4(tmp_path):
    program = (
        "import sys, time; from fer_jax.workdir.paths import Workdir\n"
        "with Workdir(sys.argv[1], storage_timeout=0.5).time_limit(): time.sleep(60)"
    )
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=50)
    assert result.returncode == 4
    assert f"fer_jax: {tmp_path}: the file system hasn't answered in 0.5 s" in result.stderr
    assert time.monotonic() - started < 50
    # The process also ends if nobody reads its standard error.
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path], stderr=subprocess.PIPE)
    process.stderr.close()
    assert process.wait(50) == 4


def test_a_limit_of_centuries_is_none(tmp_path, capsys):
    with Workdir(tmp_path, storage_timeout=1e12).time_limit():
        # The timer's thread begins to wait before the body ends.
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_bucket_is_trained_on_with_a_warning(capsys):
    with guards.hold_lock(Workdir("gs://faces/run"), Terminal(is_primary=True)):
        pass
    assert capsys.readouterr().err == (
        "fer_jax: warning: gs://faces/run is in object storage, which has no locks: see that only one run uses it.\n"
    )


def test_a_lock_that_is_never_opened_is_given_up(tmp_path):
    program = (
        "import sys; from fer_jax.system.terminal import Terminal; from fer_jax.workdir import guards, paths\n"
        "open = lambda *_: __import__('time').sleep(60); guards.open = open\n"
        "workdir = paths.Workdir(sys.argv[1], storage_timeout=0.5)\n"
        "with guards.hold_lock(workdir, Terminal(is_primary=False)): pass"
    )
    result = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=50)
    assert result.returncode == 4
    assert f"fer_jax: {tmp_path}: the file system hasn't answered in 0.5 s" in result.stderr


def test_an_error_without_a_file_name_is_named(tmp_path):
    with pytest.raises(StorageError, match=str(tmp_path)), Workdir(tmp_path).time_limit():
        raise OSError(errno.ENOSPC, "No space left on device")
