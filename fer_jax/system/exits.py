"""How the command ends: the one place that turns exceptions into exit statuses and lines on standard error."""

import errno
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from fer_jax.errors import FerJaxError, LostProcessError, MemoryExhausted, StorageError
from fer_jax.system import streams
from fer_jax.system.signals import Stopped

# Errors of a disk, a quota, permissions or a network file system on a write that names no file. Other numbers (EINVAL,
# EBADF, EPIPE, ...) are bugs, or have nothing to do with storage.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_FAILING = {errno.EIO, errno.ESTALE, errno.ENOLCK, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.ENOENT}
# TensorFlow writes for TensorBoard and to object storage. Its other errors (InvalidArgumentError, ...) are bugs.
STORAGE_OP_ERRORS = (
    "AbortedError",
    "DataLossError",
    "DeadlineExceededError",
    "NotFoundError",
    "OutOfRangeError",  # a file that may not grow further (EFBIG)
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "UnauthenticatedError",
    "UnavailableError",
)
# The status codes of the coordination service, and how gloo and NCCL describe a connection that ended.
_LOST_PROCESS = re.compile(
    r"^(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)\b"
    r"|\bgloo\b.*(connection (closed|reset|refused)|broken pipe|timed? ?out|timeout|connect failure)"
    r"|\bnccl.*(remote process exited|ncclRemoteError)",
    re.IGNORECASE | re.DOTALL,
)
# The shutdown barrier takes milliseconds if all processes leave together.
_SHUTDOWN_SECONDS = 5


def run(command: Callable[[], int | None]) -> int:
    """Calls `command` and returns its exit status: 0 for None.

    A FerJaxError or an error of storage is printed to standard error, one line for each line of its message, and gives
    its exit status. Stopped gives its status without a line. Other exceptions are bugs and keep their traceback.

    The process ends here, without returning, in two cases. After an error of storage, background threads may wait for
    the disk forever. After any error in a run of several processes, JAX would wait minutes for the other processes.
    """
    try:
        return command() or 0
    except Stopped as stopped:
        return stopped.exit_status
    except Exception as error:
        known = as_known_error(error)
        if known is None:
            if not _is_distributed():
                raise
            with streams.unheard(sys.stderr):
                traceback.print_exc()
            _leave(1)
        with streams.unheard(sys.stderr):
            for line in str(known).splitlines():
                print(f"fer_jax: {line}", file=sys.stderr)
        if isinstance(known, StorageError) or _is_distributed():
            _leave(known.exit_status, wait=not isinstance(known, LostProcessError))
        return known.exit_status


def as_known_error(error: Exception) -> FerJaxError | None:
    """Returns the FerJaxError that `error` is or stands for, or None if it is a bug."""
    if isinstance(error, FerJaxError):
        return error
    if _is_of_memory(error):
        reason = " ".join(str(error).split())[:200] or "of the machine itself"
        return MemoryExhausted(
            f"there is too little memory ({reason}); try a smaller config.batch_size, a larger "
            "config.train.grad_accum_steps or config.model.remat=True"
        )
    if _is_of_storage(error):
        return StorageError(" ".join(str(error).split()))
    if _is_distributed() and is_of_lost_process(error):
        return LostProcessError(describe_lost_process(error))
    return None


def _is_of_storage(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.filename is not None or error.errno in _FULL | _FORBIDDEN | _FAILING
    # TensorFlow is not imported only for this check.
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or not isinstance(error, tensorflow.errors.OpError):
        return False
    # Without a connection a bucket raises FailedPreconditionError, which would be a bug elsewhere.
    return isinstance(error, tuple(getattr(tensorflow.errors, name) for name in STORAGE_OP_ERRORS)) or (
        isinstance(error, tensorflow.errors.FailedPreconditionError) and "gs://" in str(error)
    )


def _is_of_memory(error: Exception) -> bool:
    jax_errors = (sys.modules["jax"].errors.JaxRuntimeError,) if "jax" in sys.modules else ()
    return isinstance(error, MemoryError) or (
        # A process of a distributed run that learns of it from another process raises UNAVAILABLE.
        isinstance(error, jax_errors) and str(error).startswith("RESOURCE_EXHAUSTED")
    )


def is_of_lost_process(error: Exception) -> bool:
    """Returns whether JAX raised `error` because another process of the run is gone or can't be reached."""
    # JAX raises ValueError, not JaxRuntimeError, if an array is fetched whose computation failed.
    kinds = (ValueError, sys.modules["jax"].errors.JaxRuntimeError) if "jax" in sys.modules else ()
    return isinstance(error, kinds) and _LOST_PROCESS.search(str(error)) is not None


def describe_lost_process(error: Exception) -> str:
    """Returns the message of a LostProcessError for what JAX raised."""
    return (
        "another process of this run is gone or can't be reached; start them all again to go on from the latest "
        f"checkpoint ({' '.join(str(error).split())[:200]})"
    )


def _is_distributed() -> bool:
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _leave(status: int, *, wait: bool = True) -> NoReturn:
    """Ends the process at once, or first waits some seconds for the others of its run to end too."""
    for stream in (sys.stdout, sys.stderr):
        with streams.unheard(stream):
            pass  # unheard flushes the stream
    if wait and _is_distributed():
        # Process 0 hosts JAX's coordination service. If it left first, JAX would abort the others (status 134).
        shutdown = threading.Thread(target=sys.modules["jax"].distributed.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(_SHUTDOWN_SECONDS)
    os._exit(status)
