import dataclasses

import numpy as np
import pytest

from fer_jax.data.dataset import Dataset, Split
from fer_jax.errors import UserError


def make_split(number: int, seed: int = 0) -> Split:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (number, 48, 48, 1), np.uint8)
    return Split(images, np.arange(number, dtype=np.int32) % 7, np.arange(number, dtype=np.int64))


def test_a_split_is_as_long_as_its_labels():
    assert len(make_split(5)) == 5


def test_split_gives_the_named_split():
    train, test = make_split(3), make_split(2)
    assert Dataset("faces", {"train": train, "test": test}).split("test") is test


def test_an_absent_split_is_named_together_with_those_that_are_there():
    dataset = Dataset("faces", {"train": make_split(3), "validation": make_split(2)})
    with pytest.raises(
        UserError, match=r"faces has no examples in its test split; it has train \(3\), validation \(2\)"
    ):
        dataset.split("test")
    with pytest.raises(UserError, match="none at all"):
        Dataset("faces", {}).split("train")


def test_fingerprint_keeps_its_value_between_versions():
    """Checkpoints and reports hold fingerprints, so computing them differently is a breaking change."""
    images = (np.arange(2 * 48 * 48) % 251).astype(np.uint8).reshape(2, 48, 48, 1)
    split = Split(images, np.array([3, 6], np.int32), np.array([0, 1]))
    assert Dataset("faces", {"train": split}).fingerprint == "ad7a45364bcf9e9d"


def test_targets_are_part_of_the_arrays_and_of_the_fingerprint_only_where_there_are_any():
    split = make_split(4)
    targets = np.eye(7, dtype=np.float32)[split.labels]
    softer = dataclasses.replace(split, targets=0.5 * targets)
    assert softer.arrays()["target"] is softer.targets
    assert "target" not in split.arrays()
    variants = [split, dataclasses.replace(split, targets=targets), softer]
    assert len({Dataset("faces", {"train": variant}).fingerprint for variant in variants}) == 3


def test_a_split_s_fingerprint_is_of_its_images_and_labels_alone():
    split = make_split(4)
    brighter, relabelled = split.images.copy(), split.labels.copy()
    brighter[3, 47, 47, 0] ^= 1
    relabelled[0] += 1
    same = dataclasses.replace(split, rows=split.rows + 7, targets=np.eye(7, dtype=np.float32)[split.labels])
    assert same.fingerprint == split.fingerprint
    others = [dataclasses.replace(split, images=brighter), dataclasses.replace(split, labels=relabelled)]
    assert len({one.fingerprint for one in (split, *others, split.take(np.array([1, 0, 2, 3])))}) == 4


@pytest.mark.parametrize("where", [np.array([3, 0]), np.arange(5) % 2 == 0])
def test_take_selects_of_every_array(where):
    split = dataclasses.replace(make_split(5), is_copy=np.arange(5) > 2)
    taken = split.take(where)
    for name in ("images", "labels", "rows", "is_copy"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(split, name)[where])
    assert taken.targets is None


def test_fingerprint_tells_apart_every_change_to_images_labels_and_splits():
    train, validation = make_split(4), make_split(2, seed=1)
    brighter, relabelled = train.images.copy(), train.labels.copy()
    brighter[3, 47, 47, 0] ^= 1
    relabelled[0] = 6
    variants = [
        {"train": train, "validation": validation},
        {"train": dataclasses.replace(train, images=brighter), "validation": validation},
        {"train": dataclasses.replace(train, labels=relabelled), "validation": validation},
        {"train": Split(train.images[::-1], train.labels[::-1], train.rows[::-1]), "validation": validation},
        {"train": validation, "validation": train},
        {"train": train, "test": validation},
        {"train": train},
    ]
    assert len({Dataset("faces", splits).fingerprint for splits in variants}) == len(variants)


def test_fingerprint_has_no_part_in_name_rows_memory_layout_and_order_of_the_splits():
    train, validation = make_split(4), make_split(2, seed=1)
    # Every second element of arrays twice as large: the same values, but not contiguous.
    spread = Split(
        np.repeat(train.images, 2, axis=0)[::2], np.repeat(train.labels, 2)[::2].astype(np.int64), train.rows + 7
    )
    same = [
        Dataset("faces", {"train": train, "validation": validation}),
        Dataset("other", {"validation": validation, "train": train}),
        Dataset("faces", {"train": spread, "validation": validation}),
    ]
    assert len({dataset.fingerprint for dataset in same}) == 1


def test_describe_is_one_line_with_sizes_fingerprint_and_note():
    dataset = Dataset("faces", {"validation": make_split(2), "train": make_split(1234)}, "drawn")
    assert dataset.describe() == f"faces (1,234 train, 2 validation; fingerprint {dataset.fingerprint}): drawn"
    assert dataclasses.replace(dataset, note="").describe().endswith(f"{dataset.fingerprint})")
