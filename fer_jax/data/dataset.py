"""Defines a dataset: checked arrays for each split, and the names of the classes."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from fer_jax.errors import UserError

# In the integer order of fer2013.csv; class folders are in alphabetical order and must be mapped by name.
CLASS_NAMES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
IMAGE_SHAPE = (48, 48, 1)
SPLITS = ("train", "validation", "test")
# The split of examples whose files name none, until they are assigned to one (see files.py).
UNSPLIT = "unsplit"


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of one split, in the order of their source.

    images: uint8 [N, height, width, channels]. labels: int32 [N], indices into the dataset's class_names. rows: int64
    [N], the example's row (0-based) in its source, counted over all splits. is_copy: bool [N], whether an equal image
    is also in the dataset's train split; None if that is unknown, and for train (see duplicates.py). targets:
    float32 [N, classes], used for training in place of the labels; None if there are only labels.
    """

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    is_copy: np.ndarray | None = None
    targets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Returns the first 16 hex digits of the SHA-256 of images and labels, in order, to identify evaluated data."""
        return _fingerprint(_contents(self))

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays that a batch's `index` points into."""
        targets = {} if self.targets is None else {"target": self.targets}
        return {"image": self.images, "label": self.labels} | targets

    def take(self, where: np.ndarray) -> "Split":
        """Returns the examples that `where`, bool [N] or indices, selects."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Split(**{name: None if array is None else array[where] for name, array in arrays.items()})

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the number of full batches of an epoch."""
        # The examples left over differ from epoch to epoch, so no image is left out for long.
        return len(self) // batch_size


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A named dataset.

    splits: by name, from SPLITS or UNSPLIT; a split without examples is absent. note: remarks for the dataset's user.
    class_names: in the order of the labels. image_shape: (height, width, channels). path: absolute path of the files;
    None if there are no files.
    """

    name: str
    splits: Mapping[str, Split]
    note: str = ""
    class_names: tuple[str, ...] = CLASS_NAMES
    image_shape: tuple[int, int, int] = IMAGE_SHAPE
    path: str | None = None

    def split(self, name: str) -> Split:
        """Returns the split called `name`; raises UserError if the dataset has no such split."""
        # The message includes the sizes, since they show at once which file was read.
        if name not in self.splits:
            have = ", ".join(f"{split} ({len(self.splits[split])})" for split in self._names())
            raise UserError(f"{self.name} has no examples in its {name} split; it has {have or 'none at all'}")
        return self.splits[name]

    def describe(self) -> str:
        """Returns one line with the name, the sizes of the splits, the fingerprint and the note."""
        sizes = ", ".join(f"{len(self.splits[split]):,} {split}" for split in self._names())
        return f"{self.name} ({sizes}; fingerprint {self.fingerprint}){': ' if self.note else ''}{self.note}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Returns the first 16 hex digits of the SHA-256 of every split's images, labels and targets, in order."""
        # Names and rows are left out, because a moved or renamed file still holds the same data.
        return _fingerprint(part for name in self._names() for part in self._contents_of(name))

    def _contents_of(self, name: str) -> Iterator[bytes | np.ndarray]:
        split = self.splits[name]
        yield f"{name} {len(split)}".encode()
        yield from _contents(split)
        # Targets are added only if there are any, so that a dataset without FER+ keeps the fingerprint that runs store.
        if split.targets is not None:
            yield np.ascontiguousarray(split.targets, dtype="<f4")

    def _names(self) -> list[str]:
        return [name for name in (*SPLITS, UNSPLIT) if name in self.splits]


def _contents(split: Split) -> Iterator[np.ndarray]:
    yield np.ascontiguousarray(split.images)
    yield np.ascontiguousarray(split.labels, dtype="<i4")


def _fingerprint(contents: Iterable[bytes | np.ndarray]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()[:16]
