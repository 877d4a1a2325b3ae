import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fer_jax.data import embedded
from fer_jax.data.dataset import CLASS_NAMES, SPLITS

SMALL = {"train": 70, "validation": 14, "test": 14}


@pytest.fixture(scope="module")
def faces():
    return embedded.make()


def test_one_call_gives_the_three_default_splits(faces):
    assert faces.name == "embedded faces"
    assert {name: len(split) for name, split in faces.splits.items()} == {"train": 1400, "validation": 350, "test": 350}


@pytest.mark.parametrize("name", SPLITS)
def test_arrays_are_as_a_split_promises(faces, name):
    split = faces.split(name)
    assert (split.images.shape, split.images.dtype) == ((len(split), 48, 48, 1), np.uint8)
    assert (split.labels.shape, split.labels.dtype) == ((len(split),), np.int32)
    assert (split.rows.shape, split.rows.dtype) == ((len(split),), np.int64)


def test_rows_count_on_from_split_to_split(faces):
    rows = np.concatenate([faces.split(name).rows for name in SPLITS])
    np.testing.assert_array_equal(rows, np.arange(2100))


@pytest.mark.parametrize("name", SPLITS)
def test_classes_are_balanced_and_shuffled(faces, name):
    labels = faces.split(name).labels
    assert np.bincount(labels).tolist() == [len(labels) // len(CLASS_NAMES)] * len(CLASS_NAMES)
    assert 0.05 < np.mean(labels[1:] == labels[:-1]) < 0.25  # 1/7 if shuffled, 1 if sorted, 0 if cycled


def test_sizes_are_honoured_and_an_empty_split_is_absent():
    faces = embedded.make(sizes={"test": 9, "train": 15, "validation": 0})
    assert list(faces.splits) == ["train", "test"]
    assert np.sort(np.bincount(faces.split("train").labels)).tolist() == [2] * 6 + [3]
    np.testing.assert_array_equal(faces.split("test").rows, np.arange(15, 24))


def test_a_split_does_not_depend_on_the_size_of_another():
    one, other = embedded.make(3, SMALL), embedded.make(3, SMALL | {"train": 7})
    np.testing.assert_array_equal(one.split("test").images, other.split("test").images)
    np.testing.assert_array_equal(one.split("test").labels, other.split("test").labels)


def test_same_seed_gives_the_same_arrays():
    assert embedded.make(5, SMALL).fingerprint == embedded.make(5, SMALL).fingerprint


def test_another_seed_gives_other_images_and_order():
    one, other = embedded.make(5, SMALL).split("train"), embedded.make(6, SMALL).split("train")
    assert not np.array_equal(one.labels, other.labels)
    assert not (one.images == other.images).all(axis=(1, 2, 3)).any()


def test_the_default_faces_are_the_same_bits_on_every_machine(faces):
    assert faces.fingerprint == "b326fd2395d9a543"


def test_no_image_appears_twice(faces):
    images = np.concatenate([faces.split(name).images for name in SPLITS])
    assert len({image.tobytes() for image in images}) == len(images)


def test_pixels_use_the_range(faces):
    images = faces.split("train").images
    assert images.min() == 0
    assert images.max() == 255
    assert images.reshape(len(images), -1).std(axis=1).min() > 10  # no blank image
    assert np.mean((images == 0) | (images == 255)) < 0.1  # few are clipped


def test_expression_moves_the_face_and_nothing_else():
    """With the same random numbers two classes share background and clothes, and differ at the mouth."""
    happy, sad = (
        embedded.draw(np.full(35, CLASS_NAMES.index(name)), np.random.default_rng(0))[..., 0].astype(int)
        for name in ("happy", "sad")
    )
    difference = np.abs(happy - sad).mean(axis=0)
    assert difference[:2].max() < 1
    assert difference[32:42, 16:32].mean() > 10


def test_raw_pixels_tell_something_but_not_all(faces):
    """The expressions can be learnt, but not by a linear model, which position and light mislead."""
    train, test = (
        (np.float32(split.images).reshape(len(split), -1) / 255, split.labels)
        for split in (faces.split("train"), faces.split("test"))
    )
    accuracy = LogisticRegression(C=0.1, max_iter=1000, tol=1e-3).fit(*train).score(*test)
    assert 0.3 < accuracy < 0.75


def test_other_classes_and_sizes_are_drawn_as_the_default_ones_are():
    names, sizes = ("sad", "happy"), {"train": 20}
    small, large = (embedded.make(0, sizes, image_size=size, class_names=names) for size in (32, 96))
    assert small.class_names == names
    assert (small.image_shape, small.splits["train"].images.shape) == ((32, 32, 1), (20, 32, 32, 1))
    assert np.bincount(small.splits["train"].labels).tolist() == [10, 10]
    # The faces are the same except for their noise: 3 x 3 pixels of the large image make one of the small image.
    ours, theirs = (dataset.splits["train"].images.astype(float) for dataset in (small, large))
    shrunk = theirs.reshape(20, 32, 3, 32, 3).mean((2, 4))[..., None]
    assert np.abs(ours - shrunk).mean() < 6
    assert np.abs(ours - shrunk[::-1]).mean() > 20
