"""Handles standard output and error that nobody reads any more: a pipe whose reader has ended, or a closed terminal."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import TextIO

# The errors of a write to such a pipe and to such a terminal.
_UNREAD = {errno.EPIPE, errno.EIO}


def silence(stream: TextIO) -> None:
    """Redirects a standard stream to nowhere, including what it has buffered.

    Python flushes the buffer when it exits, and would otherwise print a message and exit with status 120.
    """
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


@contextlib.contextmanager
def unheard(stream: TextIO) -> Iterator[None]:
    """Lets a standard stream lose its reader within the body: from then on the stream writes to nowhere.

    At the end of the body, what was written in it has reached the reader. The body should write to nothing else.
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
    """Ends the body without an error if the reader of a pipe that it writes to has ended, as `head` does.

    Standard output is flushed at the end of the body.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
