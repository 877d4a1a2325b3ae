"""What a data set is to the rest of the project: checked arrays, by split."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping

import numpy as np

from fer_jax.errors import UserError

# The integer order of fer2013.csv; folder layouts are alphabetical and must be mapped by name.
CLASS_NAMES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
IMAGE_SHAPE = (48, 48, 1)
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of one split, in the order of their source.

    images: uint8 [N, 48, 48, 1]; labels: int32 [N], indices into CLASS_NAMES;
    rows: int64 [N], the example's row (0-based) in its source, over all splits.
    """

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def arrays(self) -> dict[str, np.ndarray]:
        """Gives what the `index` of a batch points into."""
        return {"image": self.images, "label": self.labels}

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches only: what an epoch leaves over differs each time, so no image is left out for long."""
        return len(self) // batch_size


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A named data set; a split that has no examples is absent from `splits`. note: what its user should know of it."""

    name: str
    splits: Mapping[str, Split]
    note: str = ""

    def split(self, name: str) -> Split:
        """Gives the split called `name`; raises UserError where the data set has no such examples."""
        if name not in self.splits:
            have = ", ".join(f"{split} ({len(self.splits[split])})" for split in SPLITS if split in self.splits)
            raise UserError(f"{self.name} has no examples in its {name} split; it has {have or 'none at all'}")
        return self.splits[name]

    def describe(self) -> str:
        """One line: the name, the sizes of the splits, the fingerprint and the note."""
        sizes = ", ".join(f"{len(self.splits[split]):,} {split}" for split in SPLITS if split in self.splits)
        return f"{self.name} ({sizes}; fingerprint {self.fingerprint}){': ' if self.note else ''}{self.note}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of a SHA-256 over every split's images and labels, in order."""
        digest = hashlib.sha256()
        for name in SPLITS:
            if name in self.splits:
                digest.update(f"{name} {len(self.splits[name])}".encode())
                digest.update(np.ascontiguousarray(self.splits[name].images))
                digest.update(np.ascontiguousarray(self.splits[name].labels, dtype="<i4"))
        return digest.hexdigest()[:16]
