"""The pictures that a network is shown of an image, by value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.config import make_config
from fer_jax.inference.preprocessing import VIEWS, Preprocessing, make_preprocessing, predict_views
from fer_jax.options.table import OPTIONS

SIZE, CROP = 12, 8
IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 1), np.uint8)
CROPPED = Preprocessing((SIZE, SIZE, 1), crop=CROP)


def corner_network(images):
    """Returns logits from three pixels of a picture of any size, which differ when it is mirrored or moved."""
    return jnp.stack([images[:, 0, 0, 0], images[:, 2, 1, 0], 3 * images[:, 3, 5, 0]], axis=1)


def expected(pictures: list[np.ndarray]) -> np.ndarray:
    """Returns the mean of the probabilities of pictures [batch, height, width, 1], in NumPy."""
    logits = np.array([corner_network(picture.astype(np.float64) / 255) for picture in pictures])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return probabilities.mean(axis=0)


def crops() -> list[np.ndarray]:
    places = [(2, 2), (0, 0), (0, 4), (4, 0), (4, 4)]
    parts = [IMAGES[:, top : top + CROP, left : left + CROP] for top, left in places]
    return [picture for part in parts for picture in (part, part[:, :, ::-1])]


@pytest.mark.parametrize(
    ("view", "pictures"),
    [
        ("whole", [IMAGES]),
        ("whole_mirrored", [IMAGES, IMAGES[:, :, ::-1]]),
        ("centre_crop", crops()[:1]),
        ("ten_crops", crops()),
    ],
)
def test_a_view_is_the_mean_of_its_pictures_probabilities(view, pictures):
    logits = predict_views(corner_network, IMAGES, [view], CROPPED)[view]
    np.testing.assert_allclose(jax.nn.softmax(logits), expected(pictures), rtol=1e-5)


def test_a_single_picture_keeps_its_logits():
    logits = predict_views(corner_network, IMAGES, ["whole"], CROPPED)["whole"]
    np.testing.assert_array_equal(logits, corner_network(CROPPED(IMAGES)))


def test_views_asked_for_together_are_those_asked_for_alone():
    together = predict_views(corner_network, IMAGES, list(VIEWS), CROPPED)
    assert list(together) == list(VIEWS)
    for view, logits in together.items():
        np.testing.assert_allclose(logits, predict_views(corner_network, IMAGES, [view], CROPPED)[view], rtol=1e-6)


def test_the_options_know_the_views():
    assert OPTIONS["evaluation.view"].check.right == ("auto", *VIEWS)
    assert OPTIONS["evaluation.report_views"].accepts(",".join(VIEWS))
    assert CROPPED.possible_views == list(VIEWS)
    assert Preprocessing((48, 48, 1)).possible_views == ["whole", "whole_mirrored"]


def test_a_config_s_preprocessing():
    assert make_preprocessing(make_config(), (48, 48, 1)) == Preprocessing((48, 48, 1))
    config = make_config(**{"augment.crop": 40, "preprocessing.standardize": True})
    wanted = Preprocessing((48, 48, 1), standardize=True, crop=40, view="centre_crop")
    assert make_preprocessing(config, (48, 48, 1)) == wanted
    assert Preprocessing.from_metadata(wanted.to_metadata()) == wanted


def test_standardized_images_have_mean_zero_and_deviation_one_each():
    images = np.concatenate([IMAGES, IMAGES // 4 + 30, np.full((1, SIZE, SIZE, 1), 77, np.uint8)])
    standardized = np.asarray(Preprocessing((SIZE, SIZE, 1), standardize=True)(images))
    np.testing.assert_allclose(standardized.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(standardized[:10].std(axis=(1, 2, 3)), 1, atol=0.02)
    # An image of one grey value has no deviation to divide by.
    assert np.abs(standardized[10]).max() < 1e-3
    # A copy with another contrast becomes nearly the same.
    assert np.abs(standardized[:5] - standardized[5:10]).max() < 0.1
