"""Tells a storage that fails from a bug, by the exceptions of the libraries that read and write a run's files."""

import re
from collections.abc import Iterator

import jax

from fer_jax.errors import StorageError
from fer_jax.system.exits import STORAGE_OP_ERRORS

# Clients of object storage whose exceptions are no OSErrors.
_CLIENTS = ("aiohttp.", "gcsfs.", "google.api_core.", "google.auth.", "google.cloud.", "requests.", "urllib3.")
# TensorStore raises ValueError for everything. Only the message tells a full disk from an array of the wrong shape.
_TENSORSTORE_MESSAGE = re.compile(
    r"\b(UNAVAILABLE|RESOURCE_EXHAUSTED|PERMISSION_DENIED|DEADLINE_EXCEEDED|UNAUTHENTICATED|DATA_LOSS|ABORTED)\b"
    r"|\bos_error_code\b|\bOS error\b"
    r"|No space left|File too large|Read-only file system|Input/output error|[Qq]uota exceeded|Permission denied"
)


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


def one_line(error: BaseException) -> str:
    """Returns the message of an exception as one line of at most 600 characters."""
    message = " ".join(str(error).split()) or type(error).__name__
    # The libraries below name what was written first and the reason last, with long paths between.
    return message if len(message) <= 600 else f"{message[:300]} ... {message[-295:]}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and those that it was raised from."""
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
