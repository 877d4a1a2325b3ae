"""What people call the splits, the classes and the columns of a facial-expression data set."""

import re
from collections.abc import Sequence

from fer_jax.data.dataset import CLASS_NAMES

SPLIT_OF_USAGE = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}

# As they were found in downloads and repositories; a name that is not here is said, never guessed.
_SPLITS = {
    "train": ("train", "training", "trainset", "trainingset"),
    "validation": ("validation", "valid", "val", "dev", "publictest", "validationset", "validset", "valset"),
    "test": ("test", "testing", "privatetest", "testset"),
}
_SPLIT_OF_NAME = {name: split for split, names in _SPLITS.items() for name in names}
KNOWN_SPLITS = "train, training; validation, valid, val, dev, PublicTest; test, testing, PrivateTest"

# By name: sorted folders put neutral before sad, the integer order of fer2013.csv doesn't.
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

# Not "image" or "file": in other label sets that is a name.
_COLUMNS = {
    "emotion": ("emotion", "emotions", "label", "labels", "class"),
    "pixels": ("pixels", "pixel"),
    "usage": ("usage", "split", "set", "subset"),
}
_COLUMN_OF_NAME = {name: column for column, names in _COLUMNS.items() for name in names}


def split_of(name: str) -> str | None:
    """Returns the split that a folder, a file or a value of Usage is called after, or None.

    Case, blanks and the marks - and _ don't matter, nor a prefix fer2013: Train, PublicTest, public_test,
    fer2013_training.
    """
    return _SPLIT_OF_NAME.get(re.sub(r"[\s_.-]", "", name.lower()).removeprefix("fer2013"))


def label_of(folder: str, class_names: Sequence[str]) -> int | None:
    """Returns the label that the images of a class folder have, or None where it is none of `class_names`.

    The classes of FER-2013 go by their other names too (anger, happiness, ...), by their number (0 to 6, in the order
    of fer2013.csv) and by a number before the name ('0 angry', where the name alone counts). Case doesn't matter.
    """
    name = folder.strip().lower()
    # Only FER-2013's classes have other names that are known to mean the same.
    if tuple(class_names) != CLASS_NAMES:
        names = [known.lower() for known in class_names]
        return names.index(name) if name in names else None
    if is_number_of_class(name):
        return int(name)
    known = _CLASS_OF_NAME.get(re.sub(r"^\d+[\s_.-]+", "", name))
    return None if known is None else CLASS_NAMES.index(known)


def is_number_of_class(folder: str) -> bool:
    """Whether a class folder is called by the number of one of FER-2013's classes alone."""
    return folder.isdecimal() and folder.isascii() and int(folder) < len(CLASS_NAMES)


def column_of(name: str) -> str | None:
    """Returns what the column of a csv called `name` holds, 'emotion', 'pixels' or 'usage', or None."""
    return _COLUMN_OF_NAME.get(name.strip().lower())
