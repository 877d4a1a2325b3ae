"""Which exceptions end the command with a line and a status of their own, and which keep their traceback."""

import errno
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import pytest

from fer_jax.errors import Diverged, FerJaxError, LostProcessError, StorageError, UserError
from fer_jax.system import exits
from fer_jax.system.signals import Stopped

ROOT = pathlib.Path(__file__).parents[2]


def end(body: str) -> tuple[int, str, str]:
    """Runs `body` as the command of a process; returns its status and what it printed."""
    program = "import sys\nfrom fer_jax.system import exits\ndef command():\n" + textwrap.indent(body, "    ")
    program += "\nstatus = exits.run(command)\nprint('returned')\nsys.exit(status)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (7, 7)])
def test_a_command_that_returns_decides_on_its_status(result, status):
    assert exits.run(lambda: result) == status


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (UserError("config.seed is -1\nconfig.batch_size is 0"), 2, ["config.seed is -1", "config.batch_size is 0"]),
        (Diverged("the loss is nan"), 3, ["the loss is nan"]),
        (LostProcessError("gone"), 5, ["gone"]),
        (Stopped(signal.SIGTERM), 143, []),
        (Stopped(signal.SIGINT), 130, []),
        (Stopped(signal.SIGHUP), 129, []),
    ],
)
def test_errors_with_a_status_end_the_command_with_their_lines(error, status, lines, capsys):
    def command():
        raise error

    assert exits.run(command) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"fer_jax: {line}" for line in lines]


def test_an_error_of_storage_ends_the_process_at_once_though_a_thread_hangs():
    hang = "import threading, time\nthreading.Thread(target=time.sleep, args=(50,)).start()\nprint('said')\n"
    status, out, err = end(f"{hang}open('/nowhere/run')")
    assert (status, out) == (4, "said\n")
    assert err == "fer_jax: [Errno 2] No such file or directory: '/nowhere/run'\n"
    status, out, err = end(f"{hang}from fer_jax.errors import StorageError\nraise StorageError('disk full\\non runs')")
    assert (status, out, err) == (4, "said\n", "fer_jax: disk full\nfer_jax: on runs\n")


def test_a_bug_keeps_its_traceback():
    status, out, err = end("raise OSError(22, 'Invalid argument')")
    assert (status, out) == (1, "")
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("OSError: [Errno 22] Invalid argument\n")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        PermissionError(errno.EACCES, "Permission denied", "/root/run"),
        OSError(errno.EINVAL, "Invalid argument", "runs/a:b"),
    ],
)
def test_os_errors_of_storage_are_known(error):
    known = exits.as_known_error(error)
    assert type(known) is StorageError
    assert str(known) == str(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError("seek of closed file"),
        OSError(errno.EINVAL, "Invalid argument"),
        OSError(errno.EBADF, "Bad file descriptor"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        ValueError("No space left on device"),
    ],
)
def test_other_os_errors_are_bugs(error):
    assert exits.as_known_error(error) is None


def test_tensorflow_errors_are_told_apart():
    tf = pytest.importorskip("tensorflow")

    def failure(function) -> FerJaxError | None:
        with pytest.raises(tf.errors.OpError) as caught:
            function()
        return exits.as_known_error(caught.value)

    missing = failure(lambda: tf.io.read_file("/nowhere/run"))
    assert type(missing) is StorageError
    assert "/nowhere/run" in str(missing)
    assert "\n" not in str(missing)
    assert failure(lambda: tf.reshape(tf.zeros(6), (4,))) is None  # InvalidArgumentError
    storage = ("PermissionDeniedError", "UnavailableError", "ResourceExhaustedError", "DeadlineExceededError")
    for name in (*storage, "FailedPreconditionError"):
        assert type(exits.as_known_error(getattr(tf.errors, name)(None, None, "gs://bucket/run"))) is StorageError
    for name in ("InternalError", "UnimplementedError", "FailedPreconditionError"):
        assert exits.as_known_error(getattr(tf.errors, name)(None, None, "ours")) is None


RESET = "external/xla++third_party_ext+gloo/gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:10151: Connection "


@pytest.mark.parametrize(
    "error",
    [
        # Errors of the remaining processes when another one was killed, and errors that JAX documents.
        ValueError(f"UNKNOWN: Gloo all-reduce failed: [{RESET}reset by peer"),
        ValueError(f"UNKNOWN: Gloo AllGather failed: [{RESET}closed by peer [127.0.0.1]:3486"),
        jax.errors.JaxRuntimeError(f"UNKNOWN: Gloo all-reduce failed: [{RESET}closed by peer [127.0.0.1]:5000"),
        jax.errors.JaxRuntimeError(
            "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted/died/"
            "restarted unexpectedly or this task is experiencing network issues."
        ),
        jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out. Id: shutdown. 1/2 tasks reached it."),
        jax.errors.JaxRuntimeError("ABORTED: /job:jax_worker/replica:0/task:1 unexpectedly tried to connect"),
        jax.errors.JaxRuntimeError("CANCELLED: the barrier was cancelled"),
        jax.errors.JaxRuntimeError("INTERNAL: NCCL operation failed: remote process exited or there was an error"),
    ],
)
def test_errors_of_a_lost_process_are_told_by_their_message(error):
    assert exits.is_of_lost_process(error)
    assert exits.as_known_error(error) is None  # a single process has no others to lose


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 400000000000000 bytes."),
        jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Executable expected parameter 0 of size 8 but got 4"),
        jax.errors.JaxRuntimeError("INTERNAL: Failed to compile: UNAVAILABLE"),
        jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: invalid shape"),
        ValueError("Incompatible shapes: (8,) and (4,)"),
        RuntimeError("UNAVAILABLE: a generator of ours"),
    ],
)
def test_other_errors_of_jax_are_bugs(error):
    assert not exits.is_of_lost_process(error)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import jax; jax.numpy.zeros(1 << 42).block_until_ready()", "RESOURCE_EXHAUSTED: Out of memory allocating"),
        ("import numpy; numpy.zeros(1 << 50)", "Unable to allocate"),
        ("raise MemoryError", "of the machine itself"),
    ],
)
def test_too_little_memory_is_one_line_and_status_6(body, reason):
    status, _, err = end(body)
    assert status == 6
    assert err.startswith(f"fer_jax: there is too little memory ({reason}")
    assert err.endswith("config.train.grad_accum_steps or config.model.remat=True\n")
    assert len(err.splitlines()) == 1


def test_a_file_that_may_not_grow_is_told_from_a_bug_by_tensorflows_error_too(tmp_path):
    body = (
        f"import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"from clu import metric_writers; writer = metric_writers.SummaryWriter({str(tmp_path)!r})\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        f"for step in range(100): writer.write_scalars(step, {{'a': 1.0}})"
    )
    status, _, err = end(body)
    assert status == 4, err
    assert "fer_jax: " in err
    assert "File too large" in err
