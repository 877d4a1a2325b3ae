"""FER+: the votes of ten people on each image of FER-2013 (fer2013new.csv), and their join with the images.

By Barsoum, Zhang, Canton Ferrer and Zhang, "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced
Label Distribution", 2016, https://arxiv.org/abs/1608.01041; the file is in https://github.com/microsoft/FERPlus. Its
columns are `Usage,Image name`, then the votes for each of FERPLUS_CLASSES, `unknown` and `NF` (not a face).
"""

import collections
import csv
import dataclasses
import os
from collections.abc import Iterator

import numpy as np

from fer_jax.data import names
from fer_jax.data.dataset import CLASS_NAMES, Dataset
from fer_jax.errors import UserError

FERPLUS_CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
VOTED = (*FERPLUS_CLASSES, "unknown", "NF")  # the columns of votes, in the order of `FerPlus.votes`
ROWS = {"train": 28709, "validation": 3589, "test": 3589}  # of each split in the official files, in this order

_COLUMNS = ("Usage", "Image name", *VOTED)
_WANTED = f"FER+'s fer2013new.csv has the columns {','.join(_COLUMNS)}"
_OUT_OF = 10  # votes in a row
# The columns of votes for FER-2013's classes, in the order of CLASS_NAMES.
_SEVEN = [VOTED.index(name) for name in ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")]
# The favourite of the seven classes is FER-2013's label for 64 % of the images, and for 18 % if the rows are shifted.
_LEAST_AGREEMENT = 0.45


@dataclasses.dataclass(frozen=True)
class FerPlus:
    """The rows of fer2013new.csv: votes, int64 [N, 10] in the order of VOTED, and descriptions of their defects."""

    path: str
    votes: np.ndarray
    defects: tuple[str, ...] = ()


def read(path: str | os.PathLike) -> FerPlus:
    """Reads fer2013new.csv.

    Raises UserError, naming the file and the row (the header is row 1), if it is another file or is cut off, or if a
    row doesn't follow the format. The known oddities of the published file are counted in `defects`.
    """
    path, votes, image_names = os.fspath(path), [], collections.Counter()
    usages = [split for split, count in ROWS.items() for _ in range(count)]
    rows = _rows(path)
    row, header = next(rows, (1, []))
    found = [name.strip().lower() for name in header]
    if missing := [name for name in _COLUMNS if name.lower() not in found]:
        raise UserError(f"{path}: row 1: no column is called {', '.join(missing)}; {_WANTED}")
    columns = {name: found.index(name.lower()) for name in _COLUMNS}
    for row, fields in rows:
        if len(votes) == len(usages):
            raise UserError(f"{path}: row {row}: a row more than FER-2013's {len(usages):,} images")
        if wrong := _complaint(fields, columns, len(found), usages[len(votes)]):
            hint = "" if next(rows, None) else " (the file ends in this row: it may be cut off)"
            raise UserError(f"{path}: row {row}: {wrong}{hint}")
        votes.append([int(fields[columns[name]]) for name in VOTED])
        image_names[fields[columns["Image name"]].strip()] += 1
    if len(votes) != len(usages):
        raise UserError(
            f"{path}: row {row}: the file ends here, after {len(votes):,} rows; FER-2013 has {len(usages):,} images"
        )
    votes = np.array(votes, np.int64)
    unnamed = image_names.pop("", 0)
    # These are only reported: rows are joined by their order, never by name, and votes count as shares of their sum.
    defects = {
        "without the image's name": unnamed,
        "with a name that was there before": sum(image_names.values()) - len(image_names),
        f"with another number of votes than {_OUT_OF}": np.count_nonzero(votes.sum(axis=1) != _OUT_OF),
    }
    return FerPlus(path, votes, tuple(f"{count} {what}" for what, count in defects.items() if count))


def _rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of each line that isn't blank, from 1, and its fields."""
    try:
        # Latin-1 decodes every byte, so that a file that isn't text is refused because of its content.
        with open(path, encoding="latin-1", newline="") as file:
            # Excel writes a byte-order mark at the start.
            if file.read(3) != "\xef\xbb\xbf":
                file.seek(0)
            reader = csv.reader(file)
            for fields in reader:
                if fields:
                    yield reader.line_num, fields
    except csv.Error as error:
        raise UserError(f"{path}: row {reader.line_num}: no line of a csv ({error}); {_WANTED}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; config.dataset.ferplus names FER+'s fer2013new.csv") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _complaint(fields: list[str], columns: dict[str, int], num_columns: int, split: str) -> str | None:
    """Returns what is wrong with `fields` as the row of an image of `split`, or None if nothing is."""
    if len(fields) != num_columns:
        return f"{len(fields)} fields; the header names {num_columns}"
    usage = fields[columns["Usage"]]
    if names.split_of(usage) != split:
        return f"Usage is {_show(usage)}; in FER-2013's order this is an image of the {split} split"
    for name in VOTED:
        field = fields[columns[name]].strip()
        # isdecimal alone would accept digits of other scripts, and int fails on more than 4,300 digits.
        if not (field.isascii() and field.isdecimal() and len(field) < 9 and int(field) <= _OUT_OF):
            return f"{name} is {_show(field)}; it should be a number of votes from 0 to {_OUT_OF}"
    return None


def _show(field: str) -> str:
    return repr(field if len(field) <= 40 else field[:40] + "...")


# ---- Labels and targets from the votes


def majority_labels(votes: np.ndarray) -> np.ndarray:
    """Returns the index into FERPLUS_CLASSES of the class with more than half of the votes, or -1: int32 [N].

    votes: int [N, 10]. By FER+'s rules, single votes are dropped first. An image is left out (-1) if no column has more
    than half of the remaining votes, or if that column is unknown or NF.
    """
    votes = _without_single_ones(votes)
    favourites = votes.argmax(axis=1).astype(np.int32)
    is_clear = (2 * votes.max(axis=1) > votes.sum(axis=1)) & (favourites < len(FERPLUS_CLASSES))
    return np.where(is_clear, favourites, np.int32(-1))


def soft_targets(votes: np.ndarray) -> np.ndarray:
    """Returns the distribution over FERPLUS_CLASSES that FER+ trains on ("crossentropy"): float64 [N, 8].

    votes: int [N, 10]. By FER+'s rules, single votes are dropped. Columns are then taken in descending order of
    votes, ties together, until they have three quarters of the votes or there are three of them. Unknown and NF end
    this, and count only if no column was taken before. An image is left out (all zeros) if unknown or NF is its
    favourite, if the columns taken have no more than half of the votes, or if more than three were taken.
    """
    # Working row by row is slow, but the 35,887 images have only 2,055 different rows of votes.
    different, inverse = np.unique(_without_single_ones(votes), axis=0, return_inverse=True)
    return np.array([_soft_target(row) for row in different.tolist()]).reshape(-1, len(FERPLUS_CLASSES))[inverse]


def _soft_target(votes: list[int]) -> list[float]:
    num_classes, total = len(FERPLUS_CLASSES), sum(votes)
    left, taken, num_taken, num_counted = list(votes), [0] * len(votes), 0, 0
    is_emotion = True
    while num_counted < 0.75 * total and num_taken < 3 and is_emotion:
        most = max(left)
        for column in [column for column, count in enumerate(left) if count == most]:
            left[column], taken[column] = 0, most
            num_counted, num_taken = num_counted + most, num_taken + 1
            if column >= num_classes:
                is_emotion = False
                if sum(taken) > most:
                    taken[column], num_taken = 0, num_taken - 1
                break
    emotions = taken[:num_classes]
    if sum(taken) <= 0.5 * total or num_taken > 3 or taken.index(max(taken)) >= num_classes:
        return [0.0] * num_classes
    return [count / sum(emotions) for count in emotions]


def non_faces(votes: np.ndarray) -> np.ndarray:
    """Returns which images more than half of the votes say are not faces: bool [N]; votes: int [N, 10]."""
    return 2 * votes[:, VOTED.index("NF")] > votes.sum(axis=1)


def shares_of_seven(votes: np.ndarray) -> np.ndarray:
    """Returns the share of each of FER-2013's classes in the votes for these classes: float64 [N, 7], zeros if none.

    votes: int [N, 10]. An image that is not a face (see `non_faces`) gets zeros too.
    """
    seven = votes[:, _SEVEN] * ~non_faces(votes)[:, None]
    return seven / np.maximum(seven.sum(axis=1, keepdims=True), 1)


def _without_single_ones(votes: np.ndarray) -> np.ndarray:
    return np.where(votes > 1, votes, 0)


# ---- The join


def join(dataset: Dataset, ferplus: FerPlus, *, task: str = "none", target_weight: float = 0.0) -> tuple[Dataset, str]:
    """Returns `dataset` with FER+'s labels, and one line that describes the join.

    Args:
      dataset: FER-2013 with its rows in the official order; train and validation may both be from Training.
      task: 'none' keeps FER-2013's labels; 'majority' makes FER+'s classes the labels of all splits; 'soft' does the
        same and makes distributions over them train's targets. Images that FER+'s rules exclude are left out.
      target_weight: with task 'none', the share of the votes in train's targets; the rest is the label. Images without
        votes for any of FER-2013's classes, or that are not faces, keep their label as the target.

    Raises:
      UserError: if the rows are not those of FER+'s file.
    """
    joined = check(dataset, ferplus)
    if task != "none":
        dataset, said = _with_task(dataset, ferplus, task)
    elif target_weight:
        dataset, said = _with_targets(dataset, ferplus, target_weight)
    else:
        said = "nothing of it is used, since ferplus_task is none and ferplus_target_weight 0"
    return dataset, f"{joined}; {said}."


def check(dataset: Dataset, ferplus: FerPlus) -> str:
    """Returns a line that describes the join with `dataset`; raises UserError if its rows are not those of FER+."""
    if complaint := complaint_about_rows(dataset):
        raise UserError(
            f"config.dataset.ferplus needs FER-2013 in its official order, such as fer2013.csv; {complaint}"
        )
    # Compares all splits, test included: if the rows are wrong, these are not the test images' labels anyway.
    labels, rows = (
        np.concatenate([getattr(split, name) for split in dataset.splits.values()]) for name in ("labels", "rows")
    )
    votes = ferplus.votes[rows][:, _SEVEN]
    is_voted = votes.any(axis=1)
    agreement = np.count_nonzero((votes.argmax(axis=1) == labels) & is_voted) / max(np.count_nonzero(is_voted), 1)
    if agreement < _LEAST_AGREEMENT:
        raise UserError(
            f"{ferplus.path}: its favourites are the labels of {dataset.name} in {agreement:.1%} of the images; "
            "rightly joined, in 64 %: the rows of the one are not in the order of the other"
        )
    defects = f" (of them {', '.join(ferplus.defects)})" if ferplus.defects else ""
    return f"FER+: {len(ferplus.votes):,} rows{defects}; the favourites are FER-2013's labels in {agreement:.1%}"


def complaint_about_rows(dataset: Dataset) -> str | None:
    """Returns why the rows of `dataset` are not the official ones (all, or Training's), or None if they are."""
    # FER+'s file has the names and the order of the images but not their pixels: only FER-2013's own csv, in its order,
    # ties a row to an image. So a folder, whose images are sorted by name, can't be joined by content or otherwise.
    total = sum(map(len, dataset.splits.values()))
    if dataset.class_names != CLASS_NAMES:
        return f"{dataset.name} has the classes {', '.join(dataset.class_names)}"
    if total not in (sum(ROWS.values()), ROWS["train"]):
        return f"{dataset.name} has {total:,} images in place of {sum(ROWS.values()):,}"
    starts = np.cumsum([0, *ROWS.values()])
    for name, split in dataset.splits.items():
        # If the files have only Training's images, a validation split was held out of these.
        official = "train" if total == ROWS["train"] else name
        first, last = starts[list(ROWS).index(official)], starts[list(ROWS).index(official) + 1]
        if len(wrong := split.rows[(split.rows < first) | (split.rows >= last)]):
            return f"{dataset.name} has an image of the {name} split as its image {wrong[0] + 1:,}"
    return None


def _with_task(dataset: Dataset, ferplus: FerPlus, task: str) -> tuple[Dataset, str]:
    splits, kept = {}, []
    for name, split in dataset.splits.items():
        votes, targets = ferplus.votes[split.rows], None
        # As published: validation and test have the majority's labels, whatever train is trained on.
        labels = majority_labels(votes)
        if task == "soft" and name == "train":
            targets = soft_targets(votes)
            labels = np.where(targets.any(axis=1), targets.argmax(axis=1), -1).astype(np.int32)
        labelled = dataclasses.replace(
            split, labels=labels, targets=None if targets is None else targets.astype(np.float32)
        )
        splits[name] = labelled.take(np.flatnonzero(labels >= 0))
        kept.append(f"{len(splits[name]):,} of {len(split):,} {name}")
    dataset = dataclasses.replace(
        dataset, name=f"{dataset.name}, FER+ {task}", splits=splits, class_names=FERPLUS_CLASSES
    )
    return dataset, f"task {task} keeps {', '.join(kept)} images; the votes on the others are for no face or not clear"


def _with_targets(dataset: Dataset, ferplus: FerPlus, weight: float) -> tuple[Dataset, str]:
    train = dataset.split("train")
    shares = shares_of_seven(ferplus.votes[train.rows])
    own = np.eye(len(CLASS_NAMES))[train.labels]
    has_votes = shares.any(axis=1, keepdims=True)
    targets = np.where(has_votes, (1 - weight) * own + weight * shares, own).astype(np.float32)
    splits = {**dataset.splits, "train": dataclasses.replace(train, targets=targets)}
    dataset = dataclasses.replace(dataset, name=f"{dataset.name}, FER+ at {weight:g}", splits=splits)
    return dataset, (
        f"train's targets are {weight:g} of the votes and {1 - weight:g} of the label; "
        f"{np.count_nonzero(~has_votes)} train images that are no faces, or without a vote for any of the seven, keep "
        "their label"
    )
