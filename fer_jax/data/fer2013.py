"""FER-2013 from the files people hold: fer2013.csv, icml_face_data.csv, train.csv or a folder of images."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from fer_jax.data import csv_layout, folder_layout
from fer_jax.data.dataset import SPLITS, Dataset, Split
from fer_jax.errors import UserError
from fer_jax.system.terminal import SILENT, Terminal

HELD_OUT = 0.1  # the part of train that becomes validation where the files name no validation images


def read(path: str | os.PathLike, split_seed: int = 0, terminal: Terminal = SILENT) -> Dataset:
    """Reads FER-2013 from a csv file (see csv_layout) or a folder (see folder_layout), told apart by their content.

    train is Training, validation PublicTest, test PrivateTest. Where the files tell no validation split, a tenth of
    each class of train, drawn with `split_seed`, becomes it, and a warning says so. Each example's row is its 0-based
    position among the csv's data rows or the folder's sorted images. Raises UserError, naming file and row, for
    anything that isn't as the format says.
    """
    return with_validation(read_published(path, terminal), split_seed, terminal)


def read_published(path: str | os.PathLike, terminal: Terminal = SILENT) -> Dataset:
    """Reads what `read` does, with the splits that the files tell and no other: validation may be absent."""
    path = pathlib.Path(path)
    with _user_errors(path):
        if path.is_dir():
            images, labels, splits = folder_layout.read(path, terminal)
        else:
            images, labels, splits = csv_layout.read(_existing(path))
    # The row in the source is kept, since FER+ and other label sets join by it.
    rows = {name: np.flatnonzero(splits == name) for name in SPLITS}
    return Dataset(
        name=name_of(path),
        splits={
            name: Split(images[where], labels[where], where.astype(np.int64))
            for name, where in rows.items()
            if len(where)
        },
    )


def name_of(path: str | os.PathLike) -> str:
    """Returns the name of the dataset read from `path`, before any validation split is held out."""
    return f"FER-2013 ({pathlib.Path(path).resolve().name})"


def with_validation(dataset: Dataset, split_seed: int, terminal: Terminal = SILENT) -> Dataset:
    """Returns `dataset`, with a tenth of each class of train as validation where it has no validation split.

    Raises UserError where train has no class with two examples, so that nothing can be held out.
    """
    # The files know better than a draw.
    if "validation" in dataset.splits:
        return dataset
    train = dataset.split("train")
    # Its own seed: runs of several seeds are to be chosen on the same images.
    held_out = _hold_out(train.labels, split_seed)
    if not held_out.any():
        raise UserError(f"{dataset.name}: no validation images, and too few training images to hold any of them out")
    terminal.warn(
        f"{dataset.name} tells no validation split: {np.count_nonzero(held_out)} of its {len(train)} training images "
        f"(10 % of each class, split seed {split_seed}) are validation."
    )
    parts = {"train": ~held_out, "validation": held_out}
    splits = {name: Split(train.images[part], train.labels[part], train.rows[part]) for name, part in parts.items()} | {
        name: split for name, split in dataset.splits.items() if name == "test"
    }
    return dataclasses.replace(
        dataset, name=f"{dataset.name}, 10 % of train as validation, split seed {split_seed}", splits=splits
    )


def identify(path: str | os.PathLike) -> str:
    """Returns 64 hex digits that stand for the content of the source at `path`.

    A file's are the SHA-256 of its bytes, a folder's that of its images' names, sizes and times of last change.
    Raises UserError where there is no such file or folder or it can't be read.
    """
    path = pathlib.Path(path)
    with _user_errors(path):
        if not path.is_dir():
            with open(_existing(path), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        # To read 35,887 files for their content would take as long as decoding them.
        digest = hashlib.sha256()
        for file in folder_layout.list_images(path):
            status = os.stat(file.path)
            digest.update(os.fsencode(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0"))
        return digest.hexdigest()


def _hold_out(labels: np.ndarray, split_seed: int) -> np.ndarray:
    """Marks a tenth of each class, at least one of a class of two or more: bool [N]."""
    generator = np.random.default_rng(split_seed)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        examples = np.flatnonzero(labels == label)
        # A class of two keeps one image in each split; a class of one stays in train.
        count = max(round(HELD_OUT * len(examples)), min(1, len(examples) - 1))
        held_out[generator.permutation(examples)[:count]] = True
    return held_out


def _existing(path: pathlib.Path) -> pathlib.Path:
    # A pipe or a device would block or end in the middle.
    if path.exists() and not path.is_dir() and not path.is_file():
        raise UserError(f"{path}: neither a file nor a folder; give a csv file or a folder of images")
    return path


@contextlib.contextmanager
def _user_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns what the operating system says about a path into a UserError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path}: there is no such file or folder") from error
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error
