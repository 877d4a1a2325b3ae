"""One run at a time in a workdir, by a lock that ends with its owner, however that ends."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator

from absl import logging
from etils import epath

from fer_jax.errors import UserError


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Iterator[None]:
    """Holds `workdir`'s lock; raises UserError, naming the owner, where another process holds it.

    It is the operating system's (flock), so it is gone when its owner is; the file `lock` stays and means nothing. On a
    network file system it holds between machines where that file system says so (NFS from version 4 on does). Object
    storage (gs://...) has no locks: there a warning says that nothing is held.
    """
    if "://" in os.fspath(workdir):
        logging.warning("%s is in object storage, which has no locks: see that only one run uses it.", workdir)
        yield
        return
    with open(workdir / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(
                f"{workdir} is in use by a run, {owner}; wait for it, or choose another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
