"""Exceptions that end the command with a short message and their own exit status, without a traceback."""

import contextlib
import os
from collections.abc import Iterator


class FerJaxError(Exception):
    """An error that ends the command with `exit_status`. Its message has one line for each problem."""

    exit_status: int


class UserError(FerJaxError):
    """Wrong usage, configuration or data. The message names the file, row or key and says what would be right."""

    exit_status = 2


class Diverged(FerJaxError):
    """The loss, the gradients or the weights are no longer finite."""

    exit_status = 3


class StorageError(FerJaxError):
    """A file can't be written or read: a full disk, a quota, permissions. The message names the file and the reason."""

    exit_status = 4


class LostProcessError(FerJaxError):
    """Another process of a distributed run is gone or can't be reached."""

    exit_status = 5


class MemoryExhausted(FerJaxError):
    """A device, or the machine itself, has too little memory for the run."""

    exit_status = 6


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Adds `path` to OSErrors that carry no file name, by raising StorageError.

    The system names the file when `open` fails, but not when `write` or `flush` does (for example on a full disk).
    """
    try:
        yield
    except OSError as error:
        # The exception names the file already.
        if error.filename:
            raise
        raise StorageError(f"{path}: {error}") from error
