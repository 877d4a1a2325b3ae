"""Images that occur twice: found by their pixels, and marked in every split except train."""

import dataclasses
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_jax.config import make_config
from fer_jax.data.dataset import Dataset, Split
from fer_jax.data.duplicates import digests, with_copies_marked
from fer_jax.data.files import all_as, with_validation
from fer_jax.data.load import load_dataset, load_files


def split_of(images: np.ndarray) -> Split:
    return Split(images, np.zeros(len(images), np.int32), np.arange(len(images)))


def load(path, cache_dir, **options):
    config = make_config(dataset={"path": str(path), "cache_dir": str(cache_dir), **options}).dataset
    return load_dataset(config), load_files(str(path), config)


@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=12))
def test_exactly_the_images_that_are_in_train_are_marked(train, test):
    # Six images that differ in one pixel each, from the first pixel of an image to the last.
    different = np.full((6, 8, 8, 1), 7, np.uint8)
    different.reshape(6, 64)[np.arange(6), [0, 1, 7, 8, 62, 63]] = 8
    dataset = Dataset("faces", {"train": split_of(different[train]), "test": split_of(different[test])})
    marked = with_copies_marked(dataset)
    assert marked.splits["test"].is_copy.dtype == bool
    assert marked.splits["test"].is_copy.tolist() == [image in train for image in test]
    assert marked.splits["train"].is_copy is None


def test_digests_are_those_of_the_pixels_whatever_the_memory_layout(random_images):
    images = random_images(9)
    assert digests(np.repeat(images, 2, axis=0)[::2]) == digests(images.copy())
    assert digests(images.transpose(0, 2, 1, 3)) != digests(images)
    assert len(set(digests(images))) == 9


def test_the_marks_are_part_of_neither_fingerprint_nor_arrays(random_images):
    images = random_images(5)
    dataset = Dataset("faces", {"train": split_of(images), "test": split_of(images[1:3])})
    marked = with_copies_marked(dataset)
    assert marked.splits["test"].is_copy.all()
    assert marked.fingerprint == dataset.fingerprint
    assert marked.splits["test"].arrays().keys() == {"image", "label"}


def test_without_a_train_split_nothing_is_known(random_images):
    dataset = Dataset("faces", {"test": split_of(random_images(3))})
    assert with_copies_marked(dataset).splits["test"].is_copy is None


def test_files_that_tell_their_splits_are_marked(tmp_path, csv_bytes, random_images):
    images = random_images(5)
    usages = ["Training", "Training", "PublicTest", "PublicTest", "PrivateTest", "PrivateTest"]
    (tmp_path / "faces.csv").write_bytes(csv_bytes(images[[0, 1, 1, 2, 3, 0]], range(6), usages))
    for dataset in load(tmp_path / "faces.csv", tmp_path / "cache"):
        assert dataset.splits["train"].is_copy is None
        assert dataset.splits["validation"].is_copy.tolist() == [True, False]
        assert dataset.splits["test"].is_copy.tolist() == [False, True]


def test_a_validation_split_that_is_drawn_is_held_against_what_is_left_of_train(tmp_path, csv_bytes, random_images):
    # Image 0 occurs twenty times, so that both splits have it; every other image occurs once.
    images = np.concatenate([np.repeat(random_images(1), 20, axis=0), random_images(20, seed=1)])
    (tmp_path / "train.csv").write_bytes(csv_bytes(images, [0] * 20 + [1] * 20, [""] * 40, header="emotion,pixels"))
    dataset, published = load(tmp_path / "train.csv", tmp_path / "cache")
    assert dataset.splits["validation"].is_copy.tolist() == (dataset.splits["validation"].labels == 0).tolist()
    assert all_as(published, "test").splits["test"].is_copy is None


def test_a_copy_of_an_image_that_is_held_out_is_no_copy_any_more(random_images):
    train = dataclasses.replace(split_of(random_images(20)), labels=np.repeat([0, 1], 10).astype(np.int32))
    published = with_copies_marked(Dataset("faces", {"train": train, "test": split_of(train.images)}))
    assert published.splits["test"].is_copy.all()
    dataset = with_validation(published, split_seed=0)
    kept = np.isin(np.arange(20), dataset.splits["train"].rows)
    assert dataset.splits["test"].is_copy.tolist() == kept.tolist()
    assert not dataset.splits["validation"].is_copy.any()


def test_the_embedded_faces_are_marked_too():
    dataset = load_dataset(make_config(dataset={"source": "embedded"}).dataset)
    assert [split.is_copy is None for split in dataset.splits.values()] == [name == "train" for name in dataset.splits]


@pytest.mark.skipif("FER2013_CSV" not in os.environ, reason="FER2013_CSV does not say where the real fer2013.csv is")
def test_the_real_file_has_the_copies_that_are_known(tmp_path):
    dataset = load_dataset(make_config(dataset={"path": os.environ["FER2013_CSV"]}).dataset)
    assert {name: np.count_nonzero(dataset.splits[name].is_copy) for name in ("validation", "test")} == {
        "validation": 280,
        "test": 288,
    }
