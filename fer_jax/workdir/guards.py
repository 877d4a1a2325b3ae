"""Guards of a workdir: one run at a time in it, and a limit to waiting for its file system."""

import contextlib
import errno
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from etils import epath

from fer_jax import errors
from fer_jax.errors import UserError
from fer_jax.system.terminal import Terminal

if TYPE_CHECKING:
    from fer_jax.workdir.paths import Workdir

# What a file system answers that has no locks: Lustre mounted without flock, some NFS and FUSE file systems.
_HAS_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold_lock(workdir: "Workdir", terminal: Terminal) -> Iterator[None]:
    """Holds the workdir's lock; raises UserError, naming the owner, where another process holds it.

    The lock is the operating system's (flock): it is gone when its owner is, however that ends. The file stays and
    means nothing. Between machines it holds where their file system says so (NFS from version 4 on does). Object
    storage, and a file system without locks, get a warning that nothing is held.
    """
    if workdir.is_in_bucket:
        terminal.warn(f"{workdir.path} is in object storage, which has no locks: see that only one run uses it.")
        yield
        return
    with open(workdir.lock, "a+") as file:
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(
                f"{workdir.path} is in use by a run, {owner}; wait for it, or choose another --workdir"
            ) from None
        except OSError as error:
            if error.errno not in _HAS_NO_LOCKS:
                raise
            terminal.warn(f"{workdir.path} is on a file system without locks: see that only one run uses it.")
        # For the message of whoever is refused; the lock itself is the kernel's.
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _lock(file) -> None:
    import fcntl  # not on Windows, where importing this module must not fail

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def time_limit(path: epath.Path, seconds: float) -> Iterator[None]:
    """Ends the process, with a line that names `path` and exit status 4, if the body takes over `seconds`.

    A call that waits for a network file system can be waited for or left, but not interrupted. Raises StorageError
    where the body fails without naming a file.
    """

    def leave() -> None:
        print(
            f"fer_jax: {path}: the file system hasn't answered in {seconds:g} s. What was saved before is kept; the "
            "same command goes on from there.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(errors.StorageError.exit_status)

    timer = threading.Timer(seconds, leave)
    # Else a command that fails in the body would wait for the timer.
    timer.daemon = True
    timer.start()
    try:
        with errors.naming(path):
            yield
    finally:
        timer.cancel()
