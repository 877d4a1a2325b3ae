"""Guards of a workdir: a lock that admits one run at a time, and a limit on waiting for its file system."""

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
from fer_jax.system import streams
from fer_jax.system.terminal import Terminal

if TYPE_CHECKING:
    from fer_jax.workdir.paths import Workdir

# The errors of file systems without locks: Lustre mounted without flock, some NFS and FUSE file systems.
_HAS_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextlib.contextmanager
def hold_lock(workdir: "Workdir", terminal: Terminal) -> Iterator[None]:
    """Holds the workdir's lock; raises UserError, naming the owner, if another process holds it.

    The operating system releases the lock (flock) when its owner ends, whatever the reason. The file stays, but by
    itself means nothing. The lock works between machines if their file system supports that, as NFS does from version
    4 on. For object storage, and for a file system without locks, a warning is printed and no lock is held.
    """
    if workdir.is_in_bucket:
        terminal.warn(f"{workdir.path} is in object storage, which has no locks: see that only one run uses it.")
        yield
        return
    with contextlib.ExitStack() as stack:
        with workdir.time_limit():  # flock itself doesn't wait, but a network file system may hang
            file = stack.enter_context(open(workdir.lock, "a+"))
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
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def _lock(file) -> None:
    import fcntl  # not on Windows, where importing this module must not fail

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def time_limit(path: epath.Path, seconds: float) -> Iterator[None]:
    """Ends the process, with a line that names `path` and exit status 4, if the body takes more than `seconds`.

    A call that waits for a network file system can't be interrupted, so only the end of the process ends it. Raises
    StorageError if the body raises an OSError that names no file.
    """

    def leave() -> None:
        with streams.unheard(sys.stderr):
            print(
                f"fer_jax: {path}: the file system hasn't answered in {seconds:g} s. What was saved before is kept; "
                "type the same command to resume.",
                file=sys.stderr,
            )
        os._exit(errors.StorageError.exit_status)

    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), leave)
    timer.daemon = True
    timer.start()
    try:
        with errors.naming(path):
            yield
    finally:
        timer.cancel()
