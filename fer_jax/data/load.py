"""Chooses a run's dataset: files named in the configuration, files in the usual places, or the embedded set."""

import os

from fer_jax.data import embedded
from fer_jax.data.dataset import Dataset
from fer_jax.errors import UserError
from fer_jax.system.terminal import SILENT, Terminal

SOURCES = ("auto", "fer2013", "embedded")
DEFAULT_PATHS = ("data/fer2013.csv", "data/icml_face_data.csv")


def load_dataset(
    *, source: str, path: str | None, cache_dir: str, split_seed: int, terminal: Terminal = SILENT
) -> Dataset:
    """Returns the dataset that a configuration asks for; its name says what it is.

    source: 'fer2013' reads FER-2013 from `path` or, without one, from the first of DEFAULT_PATHS (below the working
    directory) that is there; 'embedded' is the set that needs no files; 'auto' is 'fer2013' where there is a path or a
    file, and 'embedded' where there is neither. cache_dir and split_seed: see `prepared.load`; the embedded set is the
    same for every seed. Raises UserError for an unknown source, a `path` that isn't there or that contradicts
    'embedded', 'fer2013' without any file, and as `fer2013.read` does.
    """
    if source not in SOURCES:
        raise UserError(f"dataset.source {source!r} is unknown; it is one of {', '.join(SOURCES)}")
    if source == "embedded" and path:
        raise UserError(f"dataset.source 'embedded' reads no files, and the path {path} is set; leave one of them out")
    files = [path] if path else [default for default in DEFAULT_PATHS if os.path.exists(default)]
    # The same faces for every run: the seed of a run must not change what it is judged on.
    if source == "embedded" or (source == "auto" and not files):
        return embedded.make(seed=0)
    if not files:
        raise UserError(
            f"dataset.source 'fer2013' finds no file: neither {' nor '.join(DEFAULT_PATHS)} is in {os.getcwd()}; put"
            " one there or set the path of a FER-2013 csv or folder"
        )
    from fer_jax.data import prepared  # imports TensorFlow, which the embedded set has no use for

    return prepared.load(files[0], cache_dir, split_seed, terminal)
