"""Reads a dataset from one csv, a csv for each split or folders of images, and recognises which of these is given."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from fer_jax.data import csv_layout, duplicates, folder_layout, image_file, names
from fer_jax.data.dataset import CLASS_NAMES, SPLITS, UNSPLIT, Dataset, Split
from fer_jax.errors import UserError
from fer_jax.system.terminal import SILENT, Terminal

HELD_OUT = 0.1  # share of train that becomes validation if the files have no validation images

# These hold all splits; other files beside them in Kaggle's download repeat the same images or have no labels.
_WHOLE = ("fer2013.csv", "fer2013.csv.gz", "icml_face_data.csv", "icml_face_data.csv.gz")
_CSV_SUFFIXES = (".csv", ".csv.gz")
_WANTED = (
    "wanted is a FER-2013 csv, a folder with csv files called after their splits (train.csv, val.csv, test.csv), or a "
    "folder with images in <split>/<class>/ or <class>/"
)


@dataclasses.dataclass(frozen=True)
class Form:
    """The form that the examples of a dataset must have, whatever the files hold.

    class_names: in the order of the labels; None for the names of the class folders, sorted. image_size: height and
    width. resize: whether images of another size or depth are converted, rather than refused.
    """

    class_names: tuple[str, ...] | None = CLASS_NAMES
    image_size: int = 48
    resize: bool = False


FER2013 = Form()


@dataclasses.dataclass(frozen=True)
class _Found:
    """The files to read at a path: csv files by split (UNSPLIT if a file names the splits itself), or images."""

    csv_files: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    images: folder_layout.Listing | None = None
    notes: Sequence[str] = ()


def read(path: str | os.PathLike, split_seed: int = 0, terminal: Terminal = SILENT, form: Form = FER2013) -> Dataset:
    """Reads the dataset at `path` for training: `read_published`, then `with_validation`."""
    return with_validation(read_published(path, terminal, form), split_seed, terminal)


def read_published(path: str | os.PathLike, terminal: Terminal = SILENT, form: Form = FER2013) -> Dataset:
    """Reads a csv file (see csv_layout), csv files by split, or a folder of images (see folder_layout).

    If `path` is a folder, the files may be in it or in one of its folders. The splits are those that the files name;
    examples without a named split are in the split UNSPLIT. Each example's row is its 0-based position among the rows
    of the csv files or the folder's sorted images. Raises UserError, naming the file and the row, for anything that
    doesn't follow the format.
    """
    path = pathlib.Path(path)
    with _user_errors(path):
        found = _find(path, form.class_names)
        if found.images is not None:
            class_names = found.images.class_names
            decoding = terminal.progress(
                found.images.files, title=f"Decoding the images of {path}", total=len(found.images.files)
            )
            images, labels, splits, resized = folder_layout.read(found.images, form.image_size, form.resize, decoding)
        else:
            class_names = CLASS_NAMES
            parts = [_read_csv(csv_file, split, form) for split, csv_file in found.csv_files.items()]
            images, labels, splits = (np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[:3])
            resized = sum(count for *_, count in parts)
    notes = list(found.notes)
    if resized:
        size = form.image_size
        notes.append(f"{resized:,} of {len(labels):,} images were brought to {size} x {size} pixels")
    # The row in the source is kept, because FER+ and other label sets are joined by it.
    rows = {name: np.flatnonzero(splits == name) for name in (*SPLITS, UNSPLIT)}
    return Dataset(
        name=name_of(path),
        splits={
            name: Split(images[where], labels[where], where.astype(np.int64))
            for name, where in rows.items()
            if len(where)
        },
        note="; ".join(notes),
        class_names=class_names,
        image_shape=images.shape[1:],
        path=os.path.abspath(path),
    )


def name_of(path: str | os.PathLike) -> str:
    """Returns the name of the dataset read from `path`, before any validation split is held out."""
    return pathlib.Path(path).resolve().name


def all_as(dataset: Dataset, split: str) -> Dataset:
    """Returns `dataset` with its UNSPLIT examples as the split called `split`."""
    if UNSPLIT not in dataset.splits:
        return dataset
    if split in dataset.splits:
        raise UserError(f"{dataset.name}: some of its images tell their split and {len(dataset.splits[UNSPLIT])} don't")
    splits = {split if name == UNSPLIT else name: examples for name, examples in dataset.splits.items()}
    return dataclasses.replace(dataset, splits=splits)


def with_validation(dataset: Dataset, split_seed: int, terminal: Terminal = SILENT) -> Dataset:
    """Returns `dataset`; if it has no validation split, a tenth of each class of train becomes validation.

    UNSPLIT examples become train. Raises UserError if train has no class with two examples, since nothing can then be
    held out.
    """
    dataset = all_as(dataset, "train")
    # A published split takes precedence over a random one.
    if "validation" in dataset.splits:
        return dataset
    train = dataset.split("train")
    # The split has its own seed, so that runs with different seeds are compared on the same images.
    held_out = _hold_out(train.labels, split_seed)
    if not held_out.any():
        raise UserError(f"{dataset.name}: no validation images, and too few training images to hold any of them out")
    terminal.warn(
        f"{dataset.name} has no validation split: {np.count_nonzero(held_out)} of its {len(train)} training images "
        f"(10 % of each class, split seed {split_seed}) are validation."
    )
    parts = {"train": ~held_out, "validation": held_out}
    splits = {name: train.take(part) for name, part in parts.items()} | {
        name: split for name, split in dataset.splits.items() if name == "test"
    }
    # Copies are marked again: a copy of an image of the whole train split may now be that of a held-out image only.
    return duplicates.with_copies_marked(
        dataclasses.replace(
            dataset, name=f"{dataset.name}, 10 % of train as validation, split seed {split_seed}", splits=splits
        )
    )


def identify(path: str | os.PathLike, form: Form = FER2013) -> str:
    """Returns 64 hex digits that identify the content of the source at `path` and the form in which it is read.

    The content of a csv is its bytes; that of a folder is its images' names, sizes and modification times. Notes, such
    as on skipped files, are included. Raises UserError if there is no such file or folder or it can't be read.
    """
    path = pathlib.Path(path)
    digest = hashlib.sha256(json.dumps(dataclasses.astuple(form)).encode())
    with _user_errors(path):
        found = _find(path, form.class_names)
        digest.update(os.fsencode("".join(found.notes)))
        for split, csv_file in found.csv_files.items():
            with open(csv_file, "rb") as file:
                digest.update(f"{split} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
        # Reading the content of 35,887 files would take as long as decoding them.
        for image in found.images.files if found.images else ():
            status = os.stat(image.path)
            digest.update(os.fsencode(f"{image.name}\0{image.split}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return digest.hexdigest()


def _find(path: pathlib.Path, class_names: tuple[str, ...] | None) -> _Found:
    """Returns what to read at `path`; raises UserError if there is nothing to read or the choice is ambiguous."""
    if not path.is_dir():
        # Reading a pipe or a device would block or end in the middle.
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: neither a file nor a folder; give a csv file or a folder of images")
        return _csv_found({UNSPLIT: path}, class_names)
    below = [pathlib.Path(entry.path) for entry in folder_layout.visible(path) if entry.is_dir()]
    if found := _find_in(path, class_names):
        return found
    # Archives are usually unpacked into a folder of their own.
    readable = {folder: found for folder in below if (found := _find_in(folder, class_names))}
    if len(readable) > 1:
        raise UserError(f"{path}: several folders in it can be read: {', '.join(map(str, readable))}; give one of them")
    if not readable:
        raise UserError(f"{path}: nothing in it can be read; {_WANTED}")
    return next(iter(readable.values()))


def _find_in(folder: pathlib.Path, class_names: tuple[str, ...] | None) -> _Found | None:
    if folder_layout.is_layout(folder):
        listing = folder_layout.list_images(folder, class_names)
        return _Found(images=listing, notes=listing.notes)
    files = [
        pathlib.Path(entry.path)
        for entry in folder_layout.visible(folder)
        if entry.is_file() and entry.name.lower().endswith(_CSV_SUFFIXES)
    ]
    by_name = {file.name.lower(): file for file in files}
    if whole := next((by_name[name] for name in _WHOLE if name in by_name), None):
        return _csv_found({UNSPLIT: whole}, class_names, _passed_over(folder, files, [whole]))
    # The competition's test.csv and example_submission.csv, which lie beside its train.csv, have no labels.
    labelled = [file for file in files if csv_layout.has_labels(file)]
    by_split: dict[str, pathlib.Path] = {}
    for file in labelled:
        split = names.split_of(file.name.lower().removesuffix(".gz").removesuffix(".csv"))
        if split in by_split:
            raise UserError(f"{file}: a second csv for the {split} split, beside {by_split[split].name}")
        if split:
            by_split[split] = file
    if by_split:
        ordered = {split: by_split[split] for split in SPLITS if split in by_split}
        return _csv_found(ordered, class_names, _passed_over(folder, files, ordered.values()))
    if len(labelled) > 1:
        raise UserError(f"{folder}: several csv files in it: {', '.join(file.name for file in labelled)}; give one")
    if labelled:
        return _csv_found({UNSPLIT: labelled[0]}, class_names, _passed_over(folder, files, labelled))
    return None


def _csv_found(csv_files: dict[str, pathlib.Path], class_names: tuple[str, ...] | None, notes=()) -> _Found:
    if class_names is None:
        file = next(iter(csv_files.values()))
        raise UserError(f"{file}: a csv has no class folders; leave config.dataset.classes at fer2013")
    return _Found(csv_files=csv_files, notes=notes)


def _passed_over(folder: pathlib.Path, files: list[pathlib.Path], read) -> list[str]:
    others = [file.name for file in files if file not in read]
    taken = ", ".join(file.name for file in read)
    return [f"{folder}: {taken} is read; passed over: {', '.join(others)}"] if others else []


def _read_csv(path: pathlib.Path, file_split: str, form: Form) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Returns the images, labels and splits of a csv, and the number of images that were resized."""
    images, labels, splits = csv_layout.read(path)
    side, size = images.shape[1], form.image_size
    if side != size and not form.resize:
        raise UserError(
            f"{path}: images of {side} x {side} pixels; they should have {size} x {size}; "
            "--config.dataset.resize=True brings images to it"
        )
    resized = len(labels) if side != size else 0
    if resized:
        # Uses the same resampling as image files.
        grey = (image_file.bring_to(Image.fromarray(image[:, :, 0]), size) for image in images)
        images = np.stack([np.asarray(image) for image in grey])[..., None]
    told = set(splits.tolist())
    if file_split == UNSPLIT:
        # FER-2013 lists Training first, so a file without the other splits is cut off.
        if "train" in told and "validation" not in told:
            raise UserError(f"{path}: no row has Usage PublicTest, the validation split; is the file complete?")
        return images, labels, splits, resized
    if wrong := told - {file_split, UNSPLIT}:
        raise UserError(f"{path}: rows with a Usage of the {wrong.pop()} split; the file is called {file_split}")
    return images, labels, np.full(len(labels), file_split), resized


def _hold_out(labels: np.ndarray, split_seed: int) -> np.ndarray:
    """Returns which examples to hold out, a tenth of each class but at least one of two or more: bool [N]."""
    generator = np.random.default_rng(split_seed)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        examples = np.flatnonzero(labels == label)
        # A class of two keeps one image in each split; a class of one stays in train.
        count = max(round(HELD_OUT * len(examples)), min(1, len(examples) - 1))
        held_out[generator.permutation(examples)[:count]] = True
    return held_out


@contextlib.contextmanager
def _user_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of the operating system about a path into UserErrors."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path}: there is no such file or folder") from error
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error
