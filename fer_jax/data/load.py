"""Where a run's data set comes from: files named in the configuration, files in the usual places, or none at all."""

import os

from fer_jax.data import embedded as synthetic
from fer_jax.data.dataset import Dataset
from fer_jax.errors import UserError

SOURCES = ("auto", "fer2013", "embedded")
DEFAULT_PATHS = ("data/fer2013.csv", "data/icml_face_data.csv")


def load(source: str, path: str | None, cache_dir: str, seed: int) -> Dataset:
    """Gives the data set that a configuration asks for; its name says what it is.

    source: 'fer2013' reads FER-2013 from `path` or, without one, from the first of DEFAULT_PATHS (below the working
    directory) that is there; 'embedded' is the generated set that needs no files; 'auto' is 'fer2013' where there is a
    path or a file, and 'embedded' where there is neither. cache_dir and seed: see `builder.load`; the embedded set is
    the same for every seed. Raises UserError for an unknown source, a `path` that isn't there or that contradicts
    'embedded', 'fer2013' without any file, and as `fer2013.read` does.
    """
    if source not in SOURCES:
        raise UserError(f"dataset source {source!r} is unknown; it is one of {', '.join(SOURCES)}")
    if source == "embedded" and path:
        raise UserError(f"dataset source 'embedded' reads no files, and the path {path} is set; leave one of them out")
    files = [path] if path else [default for default in DEFAULT_PATHS if os.path.exists(default)]
    if source == "embedded" or (source == "auto" and not files):
        return synthetic.make(seed=0)
    if not files:
        raise UserError(
            f"dataset source 'fer2013' finds no file: neither {' nor '.join(DEFAULT_PATHS)} is in {os.getcwd()}; put"
            " one there or set the path of a FER-2013 csv or folder"
        )
    from fer_jax.data import prepared as builder  # imports TensorFlow, which the embedded set has no use for

    return builder.load(files[0], cache_dir, seed)
