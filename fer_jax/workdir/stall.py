"""A limit to how long a file system may keep the command waiting."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from etils import epath

from fer_jax import errors

SECONDS = 600


@contextlib.contextmanager
def limit(path: epath.Path) -> Iterator[None]:
    """Ends the process, with a line that names `path` and exit status 4, if what is done there takes over SECONDS.

    A call that waits for a network file system can be waited for or left, but not interrupted. Raises StorageError
    where it fails without naming a file.
    """

    def leave() -> None:
        print(
            f"fer_jax: {path}: the file system hasn't answered in {SECONDS} s. What was saved before is kept; the same "
            "command goes on from there.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(4)

    timer = threading.Timer(SECONDS, leave)
    timer.daemon = True
    timer.start()
    try:
        with errors.naming(path):
            yield
    finally:
        timer.cancel()
