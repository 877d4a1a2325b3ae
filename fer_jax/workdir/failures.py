"""Tells storage failures from bugs by the exceptions of the libraries that read and write a run's files."""

import errno
import re
from collections.abc import Iterator

import jax

from fer_jax.errors import StorageError
from fer_jax.system.exits import STORAGE_OP_ERRORS

# Clients of object storage whose exceptions are not OSErrors.
_CLIENTS = ("aiohttp.", "gcsfs.", "google.api_core.", "google.auth.", "google.cloud.", "requests.", "urllib3.")
# TensorStore raises ValueError for everything. Only the message tells a full disk from an array of the wrong shape.
_REASON = r"No space left|File too large|Read-only file system|Input/output error|[Qq]uota exceeded|Permission denied"
_TENSORSTORE_MESSAGE = re.compile(
    r"\b(UNAVAILABLE|RESOURCE_EXHAUSTED|PERMISSION_DENIED|DEADLINE_EXCEEDED|UNAUTHENTICATED|DATA_LOSS|ABORTED)\b"
    rf"|\bos_error_code\b|\bOS error\b|{_REASON}"
)
# Messages that don't mean that a file is damaged (DATA_LOSS and NOT_FOUND do).
_PASSING_MESSAGE = re.compile(
    r"\b(UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|ABORTED)\b|Input/output error|Too many open files"
    r"|Stale file handle|Cannot allocate memory"
)
_PASSING_ERRNOS = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}


def is_of_storage(error: BaseException) -> bool:
    """Returns whether a file system or object storage failed, rather than this program or another process."""
    return any(map(_is_itself_of_storage, _chain(error)))


def is_of_permission(error: BaseException) -> bool:
    """Returns whether access to a file was refused."""
    return any(
        isinstance(link, PermissionError)
        or type(link).__name__ == "PermissionDeniedError"
        or "PERMISSION_DENIED" in str(link)
        for link in _chain(error)
    )


def may_pass(error: BaseException) -> bool:
    """Returns whether an error may be temporary and doesn't mean a damaged file: the storage or the memory failed."""
    return any(
        isinstance(link, MemoryError)
        or (isinstance(link, OSError) and link.errno in _PASSING_ERRNOS)
        # TensorStore raises these when it reads a file, and JAX when it puts an array on a device that is full.
        or (isinstance(link, ValueError | RuntimeError) and _PASSING_MESSAGE.search(str(link)) is not None)
        for link in _chain(error)
    )


def one_line(error: BaseException) -> str:
    """Returns the message of an exception as one line of at most 600 characters."""
    message = " ".join(str(error).split()) or type(error).__name__
    if len(message) <= 600:
        return message
    # The libraries below begin with the file and mostly end with the reason. TensorStore may have it amid long paths.
    start, end = message[:300], message[-260:]
    reason = re.search(_REASON, message)
    is_cut = reason and reason[0] not in start and reason[0] not in end
    return f"{start} ... {reason[0]} ... {end}" if is_cut else f"{start} ... {end}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and the chain of exceptions that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_itself_of_storage(error: BaseException) -> bool:
    if isinstance(error, OSError | StorageError):
        return True
    # JAX has the same status names: RESOURCE_EXHAUSTED is a device without memory, UNAVAILABLE a lost process.
    if isinstance(error, jax.errors.JaxRuntimeError):
        return False
    module = type(error).__module__ + "."
    if module.startswith("tensorflow."):
        return type(error).__name__ in STORAGE_OP_ERRORS
    if module.startswith(_CLIENTS):
        return True
    return isinstance(error, ValueError | RuntimeError) and _TENSORSTORE_MESSAGE.search(str(error)) is not None
