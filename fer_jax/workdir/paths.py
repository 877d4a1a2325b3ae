"""The names of all files of a run."""

import contextlib
import itertools
import os

from etils import epath

from fer_jax import errors
from fer_jax.config import expand_path
from fer_jax.workdir import guards

# The names of TensorBoard's files.
TENSORBOARD = "events.out.tfevents.*"


class Workdir:
    """The folder of a run, local or in a bucket (gs://...), and the path of each file and folder in it.

    path: may begin with ~ and contain environment variables. UserError is raised for any other address, as s3://.
    storage_timeout: the seconds after which `time_limit` gives up on a file system that doesn't answer.
    """

    def __init__(self, path: str | os.PathLike, *, storage_timeout: float = 600.0):
        expanded = expand_path(os.fspath(path), "the workdir")
        if "://" in expanded and not expanded.startswith("gs://"):
            raise errors.UserError(f"the workdir is {expanded}; it must be a local folder or gs://BUCKET/FOLDER")
        self.path = epath.Path(expanded)
        self._storage_timeout = storage_timeout

    @property
    def config(self) -> epath.Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> epath.Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> epath.Path:
        return self.path / "checkpoints"

    @property
    def damaged(self) -> epath.Path:
        """The folder for checkpoints that were found damaged."""
        return self.path / "damaged"

    @property
    def replaced(self) -> epath.Path:
        """The folder for a checkpoint while the same step is saved again."""
        return self.path / "replaced"

    @property
    def report(self) -> epath.Path:
        return self.path / "report"

    @property
    def selection(self) -> epath.Path:
        return self.path / "selection.json"

    @property
    def profile(self) -> epath.Path:
        return self.path / "profile"

    def files_of_a_run(self) -> str:
        """Returns the name of a file or folder in the workdir that training would overwrite; '' if there is none."""
        checkpoints = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        names = [path for path in (self.metrics, self.selection) if path.exists()]
        found = next(itertools.chain(names, checkpoints, self.path.glob(TENSORBOARD)), None)
        return found.relative_to(self.path).as_posix() if found else ""

    @property
    def lock(self) -> epath.Path:
        return self.path / "lock"

    @property
    def is_in_bucket(self) -> bool:
        """Whether the folder is in object storage, which has neither locks nor file descriptors."""
        return "://" in os.fspath(self.path)

    def time_limit(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context manager that ends the process if its body takes longer than `storage_timeout`."""
        return guards.time_limit(self.path, self._storage_timeout)


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a file, whole or not at all: a crash leaves either the old file or the new one."""
    partial = path.with_suffix(".partial")
    with errors.naming(partial):
        partial.write_text(text)
    partial.replace(path)
