"""Reads a folder of image files: <split>/<class>/*.jpg, or <class>/*.jpg alone.

FER-2013's common layout (https://www.kaggle.com/datasets/msambare/fer2013) keeps the Usage of each image in its file
name: train/angry/Training_3908.jpg, and in test/ both PublicTest_* and PrivateTest_*.
"""

import collections
import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fer_jax.data import image_file, names
from fer_jax.data.dataset import CLASS_NAMES, UNSPLIT
from fer_jax.errors import UserError

_WANTED = "wanted are folders train/<class>/ and test/<class>/, or <class>/, with images in them"


class ImageFile(NamedTuple):
    """An image of the folder: its path, its path relative to it (with /), its class folder's name and its split."""

    path: str
    name: str
    class_folder: str
    split: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of a folder, sorted by relative path; the names of the classes; notes for the user, one per line."""

    files: Sequence[ImageFile]
    class_names: tuple[str, ...]
    notes: Sequence[str]


def read(
    listing: Listing, image_size: int, resize: bool, files: Iterable[ImageFile] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Returns the images, labels and splits of a listing, in its order, and the number of images that were resized.

    images: uint8 [N, size, size, 1]; labels: int32 [N]; splits: str [N], names from SPLITS or UNSPLIT. image_size,
    resize: see `image_file.decode`, which may raise UserError. files: an iterable over the listing's files, for example
    one with a progress bar.
    """
    images = np.empty((len(listing.files), image_size, image_size, 1), np.uint8)
    resized = 0
    for image, file in zip(images, listing.files if files is None else files, strict=True):
        image[:, :, 0], was_resized = image_file.decode(file.path, size=image_size, resize=resize)
        resized += was_resized
    labels = np.array([names.label_of(file.class_folder, listing.class_names) for file in listing.files], np.int32)
    return images, labels, np.array([file.split for file in listing.files]), resized


def is_layout(folder: str | os.PathLike) -> bool:
    """Returns whether a folder has split folders with folders in them, or class folders with images in them."""
    for entry in visible(folder):
        if entry.is_dir():
            inside = visible(entry)
            # A folder called test that holds images is not a split, since nothing in it names a class.
            if names.split_of(entry.name) and any(below.is_dir() for below in inside):
                return True
            if names.split_of(entry.name) is None and any(is_image(below) for below in inside):
                return True
    return False


def list_images(folder: str | os.PathLike, class_names: Sequence[str] | None) -> Listing:
    """Returns the images of a folder that has a folder for each split or each class.

    Split folders determine the splits; if there is none for validation, the images in test/ called PublicTest_* are the
    validation split. Without split folders an image's split is UNSPLIT, unless its name states its Usage.

    class_names: those of the dataset; None for the class folders' own names, sorted. Hidden files are skipped; files
    that aren't images, and folders that don't name a split, are skipped with a note. Raises UserError for an unknown
    class folder, an image outside any class folder, a file name that contradicts its folder, a class that is in
    another split but not in train, and a train or validation folder without images.
    """
    split_folders, notes = _split_folders(folder)
    files, passed_over = [], collections.Counter()
    for split, split_folder in split_folders.items() or [(UNSPLIT, None)]:
        prefix = "" if split_folder is None else f"{split_folder.name}/"
        for class_folder in visible(split_folder or folder):
            if not class_folder.is_dir():
                if is_image(class_folder):
                    raise UserError(f"{class_folder.path}: an image outside of any class folder; {_WANTED}")
                continue
            for entry in visible(class_folder):
                if entry.is_dir():
                    raise UserError(f"{entry.path}: a folder in a class folder; images lie directly in the latter")
                if is_image(entry):
                    name = f"{prefix}{class_folder.name}/{entry.name}"
                    image_split = split if "validation" in split_folders else _split_by_name(entry, split)
                    files.append(ImageFile(entry.path, name, class_folder.name, image_split))
                else:
                    passed_over[os.path.splitext(entry.name)[1].lower() or "no suffix"] += 1
    # Counted by suffix: three .txt files don't matter, but 3,000 .heic files may be half of the images.
    if passed_over:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(passed_over.items()))
        notes.append(f"{os.fspath(folder)}: files that are not images are passed over: {kinds}")
    _require_images(folder, split_folders, files)
    files.sort(key=lambda file: file.name)
    known = tuple(class_names or sorted({file.class_folder for file in files}))
    _check_classes(folder, files, known, given=class_names is not None)
    if known == CLASS_NAMES and any(names.is_number_of_class(file.class_folder) for file in files):
        order = ", ".join(f"{label} {name}" for label, name in enumerate(CLASS_NAMES))
        notes.append(f"{os.fspath(folder)}: numbered classes are taken in the order of fer2013.csv: {order}")
    return Listing(files, known, notes)


def _split_folders(folder: str | os.PathLike) -> tuple[dict[str, os.DirEntry], list[str]]:
    """Returns the folder of each split, and a note for each other folder that contains images."""
    found, others = {}, []
    for entry in visible(folder):
        split = names.split_of(entry.name)
        if not entry.is_dir():
            continue
        if split is None:
            others.append(entry)
        elif split in found:
            raise UserError(f"{entry.path}: a second folder for the {split} split, beside {found[split].name}")
        else:
            found[split] = entry
    if not found:
        return {}, []
    # These get a note, because half of a test set has been lost to a folder with another name.
    counts = {entry.path: _count_images(entry.path) for entry in others}
    return found, [
        f"{path}: not the name of a split ({names.KNOWN_SPLITS}); its {count:,} images are passed over"
        for path, count in counts.items()
        if count
    ]


def _count_images(folder: str) -> int:
    return sum(
        name.lower().endswith(image_file.SUFFIXES) and not name.startswith(".")
        for _, _, file_names in os.walk(folder)
        for name in file_names
    )


def _require_images(folder, split_folders: dict[str, os.DirEntry], files: list[ImageFile]) -> None:
    # A test folder may be empty, as it is in copies of FER-2013.
    found = {file.split for file in files}
    for split, split_folder in split_folders.items():
        if split != "test" and split not in found:
            raise UserError(f"{split_folder.path}: no images in it; {_WANTED}")
    if not files:
        raise UserError(f"{os.fspath(folder)}: no images in it; {_WANTED}")


def _check_classes(folder, files: list[ImageFile], class_names: tuple[str, ...], *, given: bool) -> None:
    of_folder = {file.class_folder: file for file in reversed(files)}
    for class_folder, file in sorted(of_folder.items()):
        if names.label_of(class_folder, class_names) is None:
            where = os.path.dirname(file.path)
            if class_names == CLASS_NAMES:
                raise UserError(
                    f"{where}: not a class of FER-2013; its class folders are called {', '.join(CLASS_NAMES)}, or by "
                    "number, 0 to 6; --config.dataset.classes=folders takes the folders' names as the classes"
                )
            raise UserError(f"{where}: not a class of this network, which tells {', '.join(class_names)} apart")
    if given:
        return
    if len(class_names) < 2:
        raise UserError(f"{os.fspath(folder)}: one class only, {class_names[0]}; there must be two or more")
    plain = [name.strip().lower() for name in class_names]
    if doubled := [name for name, same in zip(class_names, plain, strict=True) if plain.count(same) > 1]:
        raise UserError(f"{os.fspath(folder)}: class folders that differ in case or blanks only: {', '.join(doubled)}")
    # Class names are stored with the run and printed.
    if unprintable := [name for name in class_names if name.encode(errors="ignore").decode() != name]:
        raise UserError(f"{os.fspath(folder)}: the name of the class folder {unprintable[0]!r} isn't UTF-8; rename it")
    # A class without training images could be evaluated, but never predicted correctly.
    trained = {file.class_folder for file in files if file.split in ("train", UNSPLIT)}
    if trained and (untrained := sorted(set(of_folder) - trained)):
        raise UserError(f"{os.path.dirname(of_folder[untrained[0]].path)}: a class without images in the train split")


def visible(folder: str | os.PathLike) -> list[os.DirEntry]:
    """Returns a folder's entries by name, without hidden ones such as .DS_Store, ._*.jpg and .ipynb_checkpoints."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def is_image(entry: os.DirEntry) -> bool:
    """Returns whether the name of a folder's entry ends like that of an image file."""
    return entry.name.lower().endswith(image_file.SUFFIXES)


def _split_by_name(entry: os.DirEntry, folder_split: str) -> str:
    usage = entry.name.partition("_")[0]
    # In the common layout test/ mixes PublicTest and PrivateTest, which only the file names tell apart.
    split = names.SPLIT_OF_USAGE.get(usage, folder_split)
    if folder_split != UNSPLIT and (split == "train") != (folder_split == "train"):
        raise UserError(
            f"{entry.path}: the name says {usage}, the folder says {folder_split}; move the image, or, to let the"
            " folders alone tell the splits, add a folder validation"
        )
    return split
