"""Audits a dataset: finds equal and nearly equal images, contradictory labels, constant images and non-faces."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from fer_jax.data.dataset import SPLITS, UNSPLIT, Dataset
from fer_jax.data.duplicates import digests

# Chosen on FER-2013's 34,036 different images. Few of its photographs also occur mirrored, so the mirrored pairs (an
# image and another's mirror image) show how many pairs are this alike by chance: there are 1,767 mirrored and 2,996
# unmirrored pairs from 0.85 to 0.88, 176 and 756 up to 0.90, 27 and 525 up to 0.92, and 20 and 1,629 above. Of 60 pairs
# sampled from 0.92 to 0.94 and viewed side by side, all show one photograph in another crop, scale or contrast, or with
# a watermark.
LEAST_CORRELATION = 0.92
# The search compares thumbnails. Averaging hides noise and watermarks, so thumbnails are more alike than the images: of
# the pairs found in FER-2013, none has thumbnails with a correlation below 0.936.
_THUMBNAIL = 12
_TILE = 2048  # images that are compared with as many others at once; their correlations take 16 MB
_PAIRS_AT_ONCE = 2048
# If a dataset comes from one film, all pairs are alike: the search stops, and reports it, before they fill the memory.
_MOST_PAIRS = 1_000_000
_MOST_LISTED = 10_000  # most pairs that audit.json lists


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of different images that are nearly equal, the most alike first.

    first, second: int64 [P], positions. correlation: float32 [P], correlation of their pixels. is_mirrored: bool [P],
    whether it is the correlation of one image with the mirror image of the other. is_complete: whether these are all
    such pairs.
    """

    first: np.ndarray
    second: np.ndarray
    correlation: np.ndarray
    is_mirrored: np.ndarray
    is_complete: bool = True

    def __len__(self) -> int:
        return len(self.first)


@dataclasses.dataclass(frozen=True)
class Findings:
    """The findings of an audit. A position is an index into the images of all splits, one split after the other.

    dataset: the audited dataset. images: uint8 [N, height, width, channels]. labels: int32 [N]. splits: int64 [N],
    indices into split_names. rows: int64 [N], see `Split`. equal: the positions of each group of equal images.
    near: pairs of images that are the first of such a group or occur only once. constant: positions of images whose
    pixels all have one value. non_faces: positions of images that FER+ says are not faces; None if that is unknown.
    """

    dataset: Dataset
    split_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    rows: np.ndarray
    equal: list[np.ndarray]
    near: Pairs
    constant: np.ndarray
    non_faces: np.ndarray | None = None


def audit(
    dataset: Dataset,
    *,
    is_non_face: np.ndarray | None = None,
    progress: Callable[[list], Iterable] = iter,
) -> Findings:
    """Returns the irregularities found in `dataset`.

    is_non_face: bool, by row, whether FER+ says that the image is not a face. progress: see `near_duplicates`.
    """
    names = tuple(name for name in (*SPLITS, UNSPLIT) if name in dataset.splits)
    parts = [dataset.splits[name] for name in names]
    images, labels, rows = (np.concatenate([getattr(p, key) for p in parts]) for key in ("images", "labels", "rows"))
    first, equal = equal_images(images)
    return Findings(
        dataset=dataset,
        split_names=names,
        images=images,
        labels=labels,
        splits=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        rows=rows,
        equal=equal,
        near=near_duplicates(images, np.unique(first), progress=progress),
        constant=np.flatnonzero(np.ptp(images.reshape(len(images), -1), axis=1) == 0),
        non_faces=None if is_non_face is None else np.flatnonzero(is_non_face[rows]),
    )


def equal_images(images: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the position of the first image equal to each image, int64 [N], and the groups of two or more equal ones.

    images: uint8 [N, height, width, channels].
    """
    seen: dict[bytes, list[int]] = {}
    for position, digest in enumerate(digests(images)):
        seen.setdefault(digest, []).append(position)
    first = np.empty(len(images), np.int64)
    for group in seen.values():
        first[group] = group[0]
    return first, [np.array(group) for group in seen.values() if len(group) > 1]


def near_duplicates(
    images: np.ndarray,
    positions: np.ndarray,
    *,
    least: float = LEAST_CORRELATION,
    progress: Callable[[list], Iterable] = iter,
) -> Pairs:
    """Returns the pairs of images whose pixels have a correlation of `least` or more, mirrored or not.

    Matrix products compare all thumbnails (12 x 12 averages) with one another; the pixels are then compared for the
    pairs whose thumbnails reach `least`. A correlation doesn't depend on brightness and contrast. Constant images have
    no correlation and are in no pair.

    Args:
      images: uint8 [N, height, width, channels].
      positions: int64 [M], the images to compare, without repetitions of equal images.
      progress: receives the list of work items and yields them one by one.
    """
    thumbnails = _thumbnails(images, positions)
    mirrored = _normalised(thumbnails.reshape(-1, _THUMBNAIL, _THUMBNAIL)[:, :, ::-1].reshape(thumbnails.shape))
    starts = range(0, len(positions), _TILE)
    found, count = [], 0
    tiles = [(a, b) for a in starts for b in starts if b >= a]
    for a, b in progress(tiles):
        # Unmirrored images come first: a pair that is alike both ways, as symmetrical faces are, counts as unmirrored.
        keys = np.zeros(0, np.int64)
        for is_mirrored, others in ((False, thumbnails), (True, mirrored)):
            alike = thumbnails[a : a + _TILE] @ others[b : b + _TILE].T
            first, second = np.divmod(np.flatnonzero(alike >= least), alike.shape[1])
            first, second = first + a, second + b
            is_pair = (first < second) & ~np.isin(first * len(positions) + second, keys)
            first, second = first[is_pair], second[is_pair]
            correlation = _correlations(images, positions[first], positions[second], is_mirrored)
            near = correlation >= least
            first, second, correlation = first[near], second[near], correlation[near]
            keys = first * len(positions) + second
            found.append((positions[first], positions[second], correlation, np.full(len(first), is_mirrored)))
            count += len(first)
        if count > _MOST_PAIRS:
            break
    arrays = [np.concatenate(parts) for parts in zip(*found, strict=True)] if found else [np.zeros(0, np.int64)] * 4
    order = np.lexsort((arrays[1], arrays[0], -arrays[2]))
    return Pairs(*(array[order] for array in arrays), is_complete=count <= _MOST_PAIRS)


def _thumbnails(images: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns the averages of each image over a 12 x 12 grid, normalised: float32 [M, 144]."""
    rows, columns = (_averaging(size) for size in images.shape[1:3])
    # Averaged in batches, because as floats all images at once would take four times their memory.
    parts = [
        _normalised((rows @ images[part].mean(axis=3, dtype=np.float32) @ columns.T).reshape(len(part), -1))
        for part in np.split(positions, range(_TILE, len(positions), _TILE))
    ]
    return np.concatenate(parts)


def _averaging(size: int) -> np.ndarray:
    """Returns the matrix, float32 [12, size], that averages a line of pixels over twelve parts of equal length."""
    edges = np.arange(_THUMBNAIL + 1) * size / _THUMBNAIL
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(overlap, 0) * _THUMBNAIL / size).astype(np.float32)


def _normalised(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors of mean 0 and length 1, whose products are correlations; zeros for a constant vector."""
    vectors = vectors - vectors.mean(axis=1, keepdims=True, dtype=np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    # A smaller length is only the rounding error of a constant vector.
    return np.where(length > 1e-3, vectors / np.maximum(length, 1e-3), 0).astype(np.float32)


def _correlations(images: np.ndarray, first: np.ndarray, second: np.ndarray, is_mirrored: bool) -> np.ndarray:
    """Returns the correlation of the pixels of each pair, float32 [P]."""
    correlations = np.empty(len(first), np.float32)
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        ours, theirs = images[first[part]], images[second[part]]
        theirs = theirs[:, :, ::-1] if is_mirrored else theirs
        pair = [_normalised(array.reshape(len(array), -1).astype(np.float32)) for array in (ours, theirs)]
        correlations[part] = np.einsum("ij,ij->i", *pair)
    return correlations


# ---- Summary


def summarize(findings: Findings) -> dict:
    """Returns the counts of an audit and the images concerned, as values for JSON.

    An image is {split, row, label}; row is its 0-based position in the source.
    """
    names, dataset = findings.split_names, findings.dataset
    labels, splits, near = findings.labels, findings.splits, findings.near
    num_classes, num_splits = len(dataset.class_names), len(names)
    is_contradictory = [len(set(labels[group].tolist())) > 1 for group in findings.equal]
    is_across = [len(set(splits[group].tolist())) > 1 for group in findings.equal]
    # is_in[first[i]] says which splits contain image i or an image equal to it.
    first = np.arange(len(labels))
    for group in findings.equal:
        first[group] = group[0]
    is_in = np.zeros((len(labels), num_splits), bool)
    is_in[first, splits] = True
    either = is_in[near.first] | is_in[near.second]
    near_labels_differ = labels[near.first] != labels[near.second]

    also_in_train = {}
    if "train" in names:
        train = names.index("train")
        near_train = np.zeros(len(labels), bool)
        near_train[near.first[is_in[near.second, train]]] = True
        near_train[near.second[is_in[near.first, train]]] = True
        for number, name in enumerate(names):
            if name != "train":
                equal, close = is_in[first, train] & (splits == number), near_train[first] & (splits == number)
                also_in_train[name] = {
                    "equal": int(equal.sum()),
                    "near": int((close & ~equal).sum()),
                    "share": float((equal | close).sum() / (splits == number).sum()),
                }
    return {
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "class_names": list(dataset.class_names),
        "class_counts": {
            name: np.bincount(dataset.splits[name].labels, minlength=num_classes).tolist() for name in names
        },
        "equal": {
            "groups": len(findings.equal),
            "images": sum(map(len, findings.equal)),
            "groups_across_splits": sum(is_across),
            "groups_with_different_labels": sum(is_contradictory),
            "list": [_describe(findings, group) for group in findings.equal],
        },
        "near": {
            "least_correlation": LEAST_CORRELATION,
            "pairs": len(near),
            "is_complete": near.is_complete,
            "mirrored_pairs": int(near.is_mirrored.sum()),
            "groups": _num_groups(near),
            "pairs_across_splits": int((either.sum(axis=1) > 1).sum()),
            "pairs_with_different_labels": int(near_labels_differ.sum()),
            "list": [
                {
                    "images": _describe(findings, pair),
                    "correlation": round(float(correlation), 4),
                    "mirrored": bool(flip),
                }
                for *pair, correlation, flip in itertools.islice(
                    zip(near.first, near.second, near.correlation, near.is_mirrored, strict=True), _MOST_LISTED
                )
            ],
        },
        "also_in_train": also_in_train,
        "constant": _describe(findings, findings.constant),
        "non_faces": None if findings.non_faces is None else _describe(findings, findings.non_faces),
    }


def _num_groups(pairs: Pairs) -> int:
    """Returns the number of groups of near images that the pairs connect."""
    known, numbers = np.unique(np.concatenate([pairs.first, pairs.second]), return_inverse=True)
    edges = coo_matrix((np.ones(len(pairs), bool), np.split(numbers, 2)), shape=(len(known), len(known)))
    return int(connected_components(edges, directed=False)[0])


def _describe(findings: Findings, positions: Iterable[int]) -> list[dict]:
    class_names = findings.dataset.class_names
    return [
        {
            "split": findings.split_names[findings.splits[position]],
            "row": int(findings.rows[position]),
            "label": class_names[findings.labels[position]],
        }
        for position in positions
    ]
