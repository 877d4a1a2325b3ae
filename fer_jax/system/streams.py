"""Standard output and error once nobody reads them: a pipe whose reader has ended, a terminal that is closed."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import TextIO

# What the system answers to a write into such a pipe and to such a terminal.
_UNREAD = {errno.EPIPE, errno.EIO}


def silence(stream: TextIO) -> None:
    """Makes a standard stream write to nowhere, what it still holds included.

    Python writes that when it ends, and would end with a message and status 120.
    """
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


@contextlib.contextmanager
def unheard(stream: TextIO) -> Iterator[None]:
    """A context in which a standard stream may lose its reader: from then on it writes to nowhere.

    What is written in the context has reached the reader at its end. Nothing else should be written in it.
    """
    try:
        yield
        stream.flush()
    except OSError as error:
        if error.errno not in _UNREAD:
            raise
        silence(stream)


@contextlib.contextmanager
def ending_unread() -> Iterator[None]:
    """A context that ends without an error where the reader of a pipe that is written in it has ended, as `head` does.

    Standard output is flushed at its end.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
