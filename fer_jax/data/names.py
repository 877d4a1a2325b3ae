"""The names in common use for the splits, classes and columns of a facial-expression dataset."""

import re
from collections.abc import Sequence

from fer_jax.data.dataset import CLASS_NAMES

SPLIT_OF_USAGE = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}

# As found in downloads and repositories; a name that is not listed is reported, never guessed.
_SPLITS = {
    "train": ("train", "training", "trainset", "trainingset"),
    "validation": ("validation", "valid", "val", "dev", "publictest", "validationset", "validset", "valset"),
    "test": ("test", "testing", "privatetest", "testset"),
}
_SPLIT_OF_NAME = {name: split for split, names in _SPLITS.items() for name in names}
KNOWN_SPLITS = "train, training; validation, valid, val, dev, PublicTest; test, testing, PrivateTest"

# Classes are matched by name: sorted folders have neutral before sad, unlike the integer order of fer2013.csv.
_CLASSES = {
    "angry": ("angry", "anger"),
    "disgust": ("disgust", "disgusted"),
    "fear": ("fear", "fearful"),
    "happy": ("happy", "happiness"),
    "sad": ("sad", "sadness"),
    "surprise": ("surprise", "surprised"),
    "neutral": ("neutral",),
}
_CLASS_OF_NAME = {name: known for known, names in _CLASSES.items() for name in names}

# "image" and "file" are not listed: in other label sets such a column holds an image's name.
_COLUMNS = {
    "emotion": ("emotion", "emotions", "label", "labels", "class"),
    "pixels": ("pixels", "pixel"),
    "usage": ("usage", "split", "set", "subset"),
}
_COLUMN_OF_NAME = {name: column for column, names in _COLUMNS.items() for name in names}


def split_of(name: str) -> str | None:
    """Returns the split that the name of a folder or file, or a value of Usage, stands for, or None.

    Case, blanks, the marks - and _ and a prefix fer2013 don't matter: Train, PublicTest, public_test, fer2013_training.
    """
    return _SPLIT_OF_NAME.get(re.sub(r"[\s_.-]", "", name.lower()).removeprefix("fer2013"))


def label_of(folder: str, class_names: Sequence[str]) -> int | None:
    """Returns the label of the images of a class folder, or None if the folder is none of `class_names`.

    FER-2013's classes are also recognised by their other names (anger, happiness, ...), by their number (0 to 6, in the
    order of fer2013.csv) and by a number before the name ('0 angry', where only the name counts). Case and blanks
    around a name don't matter.
    """
    name = folder.strip().lower()
    # Synonyms are known only for FER-2013's classes.
    if tuple(class_names) != CLASS_NAMES:
        names = [known.strip().lower() for known in class_names]
        return names.index(name) if name in names else None
    if is_number_of_class(name):
        return int(name)
    known = _CLASS_OF_NAME.get(re.sub(r"^\d+[\s_.-]+", "", name))
    return None if known is None else CLASS_NAMES.index(known)


def is_number_of_class(folder: str) -> bool:
    """Returns whether the name of a class folder is only the number of one of FER-2013's classes."""
    return folder.isdecimal() and folder.isascii() and int(folder) < len(CLASS_NAMES)


def column_of(name: str) -> str | None:
    """Returns the content of the csv column called `name`, 'emotion', 'pixels' or 'usage', or None if unknown."""
    return _COLUMN_OF_NAME.get(name.strip().lower())
