"""Reads FER-2013 as a folder of image files, train/<class>/*.jpg and test/<class>/*.jpg.

The layout in circulation (https://www.kaggle.com/datasets/msambare/fer2013) keeps the Usage of each image in its file
name: train/angry/Training_3908.jpg, and in test/ both PublicTest_* and PrivateTest_*.
"""

import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from fer_jax.data.csv_layout import SPLIT_OF_USAGE
from fer_jax.data.dataset import CLASS_NAMES, IMAGE_SHAPE
from fer_jax.errors import UserError
from fer_jax.system.terminal import SILENT, Terminal

# By name: sorted folders put neutral before sad, the integer order of fer2013.csv doesn't.
LABEL_OF_FOLDER = {
    folder: CLASS_NAMES.index(name)
    for name, folders in {
        "angry": ("angry", "anger"),
        "disgust": ("disgust", "disgusted"),
        "fear": ("fear", "fearful"),
        "happy": ("happy", "happiness"),
        "sad": ("sad", "sadness"),
        "surprise": ("surprise", "surprised"),
        "neutral": ("neutral",),
    }.items()
    for folder in folders
}

_SPLIT_OF_FOLDER = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_SUFFIXES = (".jpg", ".jpeg", ".png")
_WANTED = "wanted are folders train/<class>/ and test/<class>/ with 48 x 48 images in them, or a csv file"


class ImageFile(NamedTuple):
    """An image of the folder: its path, its path below the folder with /, its label and its split."""

    path: str
    name: str
    label: int
    split: str


def read(folder: str | os.PathLike, terminal: Terminal = SILENT) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the images, labels and splits of a folder, in the order of `list_images`.

    images: uint8 [N, 48, 48, 1]; labels: int32 [N]; splits: str [N], of SPLITS. Raises UserError as `list_images` does
    and for a file that is not a readable 48 x 48 image.
    """
    files = list_images(folder)
    images = np.empty((len(files), *IMAGE_SHAPE), np.uint8)
    decoding = terminal.progress(files, title=f"Decoding the images of {os.fspath(folder)}", total=len(files))
    for image, file in zip(images, decoding, strict=True):
        image[:, :, 0] = _decode(file.path)
    labels = np.array([file.label for file in files], np.int32)
    return images, labels, np.array([file.split for file in files])


def list_images(folder: str | os.PathLike) -> list[ImageFile]:
    """Returns the image files of a folder, sorted by their path below it.

    Where there is a folder validation/ (or val/), the folders alone tell the splits. Where there is none, the images
    in test/ called PublicTest_* are the validation split, and all others in it the test split. Other files than .jpg,
    .jpeg and .png, and hidden ones, are passed over. Raises UserError for an unknown class folder, an image outside
    any class folder, a name that contradicts its folder and a folder without training images.
    """
    split_folders = _split_folders(folder)
    files = []
    for split, split_folder in split_folders.items():
        for class_folder in _visible(split_folder):
            if not class_folder.is_dir():
                if _is_image(class_folder):
                    raise UserError(f"{class_folder.path}: an image outside of any class folder; {_WANTED}")
                continue
            label = LABEL_OF_FOLDER.get(class_folder.name.lower())
            if label is None:
                known = ", ".join(LABEL_OF_FOLDER)
                raise UserError(f"{class_folder.path}: not a class of FER-2013; class folders are called {known}")
            for entry in _visible(class_folder):
                if entry.is_dir():
                    raise UserError(f"{entry.path}: a folder in a class folder; images lie directly in the latter")
                if _is_image(entry):
                    name = f"{split_folder.name}/{class_folder.name}/{entry.name}"
                    image_split = split if "validation" in split_folders else _split_by_name(entry, split)
                    files.append(ImageFile(entry.path, name, label, image_split))
    # A test folder may be empty or missing; without training or validation images nothing can be trained.
    found = {file.split for file in files}
    for split, split_folder in split_folders.items():
        if split != "test" and split not in found:
            raise UserError(f"{split_folder.path}: no images ({', '.join(_SUFFIXES)}) in it; {_WANTED}")
    return sorted(files, key=lambda file: file.name)


def _split_folders(folder: str | os.PathLike) -> dict[str, os.DirEntry]:
    found = {}
    for entry in _visible(folder):
        split = _SPLIT_OF_FOLDER.get(entry.name.lower())
        if split is not None and entry.is_dir():
            if split in found:
                raise UserError(f"{entry.path}: a second folder for the {split} split, beside {found[split].name}")
            found[split] = entry
    if "train" not in found:
        csv_files = [entry.path for entry in _visible(folder) if entry.name.lower().endswith((".csv", ".csv.gz"))]
        hint = f"; for the csv file in it give {csv_files[0]}" if csv_files else ""
        raise UserError(f"{os.fspath(folder)}: no folder train in it; {_WANTED}{hint}")
    return found


def _visible(folder: str | os.PathLike) -> list[os.DirEntry]:
    """Returns what is in a folder, sorted by name, without what is hidden: .DS_Store, ._*.jpg, .ipynb_checkpoints."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _is_image(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(_SUFFIXES)


def _split_by_name(entry: os.DirEntry, folder_split: str) -> str:
    usage = entry.name.partition("_")[0]
    # In the layout in circulation test/ mixes PublicTest and PrivateTest; only the file name tells them apart.
    split = SPLIT_OF_USAGE.get(usage, folder_split)
    if (split == "train") != (folder_split == "train"):
        raise UserError(
            f"{entry.path}: the name says {usage}, the folder says {folder_split}; move the image, or, to let the"
            " folders alone tell the splits, add a folder validation"
        )
    return split


def _decode(path: str) -> np.ndarray:
    """Returns the grey values of an image file: uint8 [48, 48]."""
    expected = "it should be a 48 x 48 grey image"
    try:
        # Naming the formats keeps a renamed file from reaching one of Pillow's rarer decoders.
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            size, mode = image.size, image.mode
            if size == IMAGE_SHAPE[:2] and mode in ("L", "P", "RGB", "RGBA"):
                # Pillow's grey is exact where the three channels are equal, as in a grey image saved in colour, and
                # the luma of ITU-R 601 where they aren't: what a grey photograph of the same face would show.
                return np.asarray(image.convert("L"))
    except PermissionError:
        raise
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        raise UserError(f"{path}: unreadable as an image ({' '.join(str(error).split())}); {expected}") from error
    if size != IMAGE_SHAPE[:2]:
        raise UserError(f"{path}: {size[0]} x {size[1]} pixels; {expected}")
    raise UserError(f"{path}: pixels of Pillow's mode {mode}; {expected} of 8 bits")
