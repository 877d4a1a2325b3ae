"""The exceptions that end the command with a line and an exit status of their own, without a traceback."""

import contextlib
import os
from collections.abc import Iterator


class UserError(Exception):
    """Wrong usage, configuration or data: exit status 2.

    The message names what is wrong, where (file, row, key) and what would be right; one line for each thing wrong.
    """


class StorageError(Exception):
    """Something can't be written or read: a full disk, a quota, permissions. Exit status 4; names what, and why."""


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Raises a StorageError that names `path` where the system can't do what is asked, and doesn't say with which file.

    It says so of a file that can't be opened, but not of one that can't be written to.
    """
    try:
        yield
    except OSError as error:
        if error.filename:
            raise
        raise StorageError(f"{path}: {error}") from error
