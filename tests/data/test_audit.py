"""The audit: every pair of similar images is found, whatever the tile size, and counted correctly."""

import itertools
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_jax.config import make_config
from fer_jax.data import audit as audit_lib
from fer_jax.data.audit import audit, equal_images, near_duplicates, summarize
from fer_jax.data.dataset import Dataset, Split
from fer_jax.data.load import load_published


def patterns(number: int, seed: int = 0, size: int = 48) -> np.ndarray:
    """Returns images as smooth as faces and unlike one another: uint8 [number, size, size, 1]."""
    coarse = np.random.default_rng(seed).integers(30, 220, (number, 4, 4))
    places = np.arange(size) * 4 // size
    return coarse[:, places][:, :, places][..., None].astype(np.uint8)


def noisy(images: np.ndarray, amount: int, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-amount, amount, images.shape, endpoint=True)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def pairs_of(images, **options) -> dict[tuple[int, int], tuple[float, bool]]:
    found = near_duplicates(images, np.arange(len(images)), **options)
    assert np.all(np.diff(found.correlation) <= 0)
    pairs = zip(found.first.tolist(), found.second.tolist(), strict=True)
    return dict(zip(pairs, zip(found.correlation.tolist(), found.is_mirrored.tolist(), strict=True), strict=True))


def brute_force(images, least: float) -> dict[tuple[int, int], tuple[float, bool]]:
    found = {}
    for a, b in itertools.combinations(range(len(images)), 2):
        for is_mirrored, other in ((True, images[b][:, ::-1]), (False, images[b])):
            correlation = np.corrcoef(images[a].ravel(), other.ravel())[0, 1]
            if correlation >= least:
                found[a, b] = correlation, is_mirrored
    return found


@pytest.mark.parametrize("tile", [3, 7, 2048])
@pytest.mark.parametrize("size", [8, 48, 50, 67])
def test_exactly_the_pairs_of_a_search_over_all_of_them_are_found(tile, size, monkeypatch):
    monkeypatch.setattr(audit_lib, "_TILE", tile)
    monkeypatch.setattr(audit_lib, "_PAIRS_AT_ONCE", 2)
    images = patterns(20, size=size)
    images[5], images[13] = noisy(images[:1], 9)[0], noisy(images[2:3], 25)[0]
    images[19] = noisy(images[7:8], 5)[0, :, ::-1]
    images[11] = (images[4] * 0.5 + 80).astype(np.uint8)
    images[12] = noisy(images[4:5], 3)[0]
    expected = brute_force(images, 0.92)
    assert {(0, 5), (2, 13), (7, 19), (4, 11), (4, 12), (11, 12)} <= expected.keys()
    found = pairs_of(images)
    assert found.keys() == expected.keys()
    for pair, (correlation, is_mirrored) in expected.items():
        assert found[pair] == (pytest.approx(correlation, abs=1e-4), is_mirrored)
    assert found[7, 19][1]


def test_brightness_and_contrast_do_not_matter_and_constant_images_are_in_no_pair():
    images = patterns(4)
    images[1] = images[0] // 2 + 50
    images[2], images[3] = 90, 91
    images[3, 0, 0] = 92  # nearly constant: its only structure is one pixel
    assert pairs_of(images).keys() == {(0, 1)}
    assert pairs_of(np.full((5, 48, 48, 1), 255, np.uint8)) == {}
    assert pairs_of(patterns(1)) == {}


def test_a_symmetrical_image_and_its_like_are_one_pair_that_is_not_mirrored():
    image = patterns(1)
    image = (image + image[:, :, ::-1].astype(int))[0] // 2
    images = np.stack([image, image + 3]).astype(np.uint8)
    assert [is_mirrored for _, is_mirrored in pairs_of(images).values()] == [False]


def test_the_search_ends_and_says_so_where_everything_is_alike(monkeypatch):
    monkeypatch.setattr(audit_lib, "_MOST_PAIRS", 50)
    monkeypatch.setattr(audit_lib, "_TILE", 8)
    images = noisy(np.repeat(patterns(1), 60, axis=0), 4)
    found = near_duplicates(images, np.arange(60))
    assert not found.is_complete
    assert 50 < len(found) <= 50 + 64
    assert near_duplicates(images[:10], np.arange(10)).is_complete


@pytest.mark.parametrize("size", [8, 12, 48, 50, 67])
def test_thumbnails_are_averages_of_equal_parts(size):
    matrix = audit_lib._averaging(size)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(matrix.sum(axis=0), 12 / size, rtol=1e-5)
    if size % 12 == 0:
        line = np.random.default_rng(0).random(size)
        np.testing.assert_allclose(matrix @ line, line.reshape(12, -1).mean(axis=1), rtol=1e-5)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=15))
def test_equal_images_are_grouped_by_content(contents):
    images = patterns(5)[contents]
    first, groups = equal_images(images)
    assert first.tolist() == [contents.index(content) for content in contents]
    expected = [[i for i, other in enumerate(contents) if other == content] for content in dict.fromkeys(contents)]
    assert [group.tolist() for group in groups] == [group for group in expected if len(group) > 1]


def make_dataset() -> Dataset:
    """Returns a dataset of eleven images, which the comments describe."""
    a, b, c, d, e, f = patterns(6)
    near_b, near_c = noisy(b[None], 5)[0], noisy(c[None], 5)[0, :, ::-1]
    flat = np.full_like(a, 7)
    parts = {
        "train": ([a, a, b, flat, c, d], [0, 1, 2, 3, 4, 5]),  # a twice, with two labels
        "validation": ([b, near_b, e], [2, 2, 6]),  # b again, and a near duplicate of it
        "test": ([near_c, f], [0, 6]),  # c mirrored, with another label
    }
    splits, row = {}, 0
    for name, (images, labels) in parts.items():
        rows = np.arange(row, row + len(images))
        splits[name] = Split(np.array(images), np.array(labels, np.int32), rows)
        row += len(images)
    return Dataset("faces", splits)


def test_the_figures_of_a_small_set_are_those_that_can_be_counted_by_hand():
    is_non_face = np.zeros(11, bool)
    is_non_face[[3, 8]] = True
    summary = summarize(audit(make_dataset(), is_non_face=is_non_face))
    assert json.loads(json.dumps(summary)) == summary
    equal, near = summary["equal"], summary["near"]
    assert (equal["groups"], equal["images"]) == (2, 4)
    assert (equal["groups_across_splits"], equal["groups_with_different_labels"]) == (1, 1)
    assert equal["list"][0] == [
        {"split": "train", "row": 0, "label": "angry"},
        {"split": "train", "row": 1, "label": "disgust"},
    ]
    assert (near["pairs"], near["mirrored_pairs"], near["groups"], near["is_complete"]) == (2, 1, 2, True)
    # Only the first of the two equal images b is compared, but b counts as an image of both train and validation.
    assert (near["pairs_across_splits"], near["pairs_with_different_labels"]) == (2, 1)
    mirrored = next(pair for pair in near["list"] if pair["mirrored"])
    assert [(image["split"], image["row"]) for image in mirrored["images"]] == [("train", 4), ("test", 9)]
    assert summary["also_in_train"] == {
        "validation": {"equal": 1, "near": 1, "share": pytest.approx(2 / 3)},
        "test": {"equal": 0, "near": 1, "share": 0.5},
    }
    assert summary["constant"] == [{"split": "train", "row": 3, "label": "happy"}]
    assert [image["row"] for image in summary["non_faces"]] == [3, 8]
    assert summary["class_counts"]["validation"] == [0, 0, 2, 0, 0, 0, 1]


def test_nothing_odd_is_found_where_nothing_is_and_what_is_unknown_is_left_out():
    images = patterns(6)
    summary = summarize(audit(Dataset("faces", {"test": Split(images, np.arange(6, dtype=np.int32), np.arange(6))})))
    assert (summary["equal"]["groups"], summary["near"]["pairs"], summary["near"]["groups"]) == (0, 0, 0)
    assert (summary["constant"], summary["non_faces"], summary["also_in_train"]) == ([], None, {})


def test_progress_is_given_all_that_there_is_to_do():
    seen = []
    audit(make_dataset(), progress=lambda tiles: (seen.append(tile) or tile for tile in tiles))
    assert seen == [(0, 0)]


@pytest.mark.skipif("FER2013_CSV" not in os.environ, reason="FER2013_CSV does not say where the real fer2013.csv is")
def test_the_real_file_has_what_is_known_of_it():
    summary = summarize(audit(load_published(make_config(dataset={"path": os.environ["FER2013_CSV"]}).dataset)))
    equal = summary["equal"]
    assert (equal["groups"], equal["groups_across_splits"], equal["groups_with_different_labels"]) == (1514, 557, 57)
    also = summary["also_in_train"]
    assert (also["validation"]["equal"], also["test"]["equal"]) == (280, 288)
    assert len(summary["constant"]) == 12
    # Correlations that equal 0.92 up to rounding may fall on either side of the bound.
    assert summary["near"]["pairs"] == pytest.approx(1649, abs=2)
