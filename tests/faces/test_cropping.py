"""Faces cut out of pictures."""

import math

import numpy as np
import pytest
from PIL import Image

from fer_jax.faces.cropping import crop
from fer_jax.faces.detection import Face, Frame


def face(x: float, y: float, side: float, roll: float | None = None) -> Face:
    if roll is None:
        return Face((0, 0, 1, 1), 1.0, Frame(x, y, side))
    across = (math.cos(math.radians(roll)), math.sin(math.radians(roll)))
    keypoints = {"right_eye": (x, y), "left_eye": (x + across[0], y + across[1])}
    return Face((0, 0, 1, 1), 1.0, Frame(x, y, side), keypoints)


def smooth(height: int, width: int) -> np.ndarray:
    """Returns a picture without sharp edges whose quarters differ: uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width] / min(height, width)
    waves = [120 + 60 * np.sin(3 * x + 2 * y + shift) + 50 * np.cos(4 * y - x * shift) for shift in (0, 1, 2)]
    return np.stack(waves, axis=-1).astype(np.uint8)


GREY, COLOUR = (48, 48, 1), (64, 64, 3)


def test_a_frame_of_the_image_s_size_is_its_pixels():
    picture = smooth(100, 120)
    np.testing.assert_array_equal(crop(picture, face(20 + 32, 30 + 32, 64), COLOUR), picture[30:94, 20:84])
    luma = np.asarray(Image.fromarray(picture).convert("L"))[30:78, 20:68, None]
    np.testing.assert_array_equal(crop(picture, face(20 + 24, 30 + 24, 48), GREY), luma)


@pytest.mark.parametrize("times", [2, 3, 7])
def test_a_larger_frame_is_averaged(times):
    # Noise: a filter that skips pixels would leave more of it.
    noise = np.random.default_rng(0).integers(0, 256, (64 * times, 64 * times, 3), dtype=np.uint8)
    means = noise.reshape(64, times, 64, times, 3).mean(axis=(1, 3))
    cut = crop(noise, face(32 * times, 32 * times, 64 * times), COLOUR)
    np.testing.assert_allclose(cut, means, atol=1)


def test_a_frame_between_two_sizes_keeps_its_mean_and_its_places():
    picture = smooth(400, 400)
    cut = crop(picture, face(200, 200, 170.6), COLOUR)
    exact = Image.fromarray(picture).resize((64, 64), Image.Resampling.BOX, box=(114.7, 114.7, 285.3, 285.3))
    np.testing.assert_allclose(cut, np.asarray(exact), atol=3)


def test_a_smaller_frame_is_interpolated():
    picture = smooth(60, 60)
    cut = crop(picture, face(30, 30, 20), GREY)
    assert cut.shape == GREY
    # The pixels in the frame's corners.
    luma = np.asarray(Image.fromarray(picture).convert("L")).astype(int)
    for row, column in ((0, 0), (0, 47), (47, 0), (47, 47)):
        y, x = 20 + round(row / 47 * 19), 20 + round(column / 47 * 19)
        assert abs(cut[row, column, 0] - luma[y, x]) < 8


def test_beside_the_picture_its_edge_is_repeated():
    picture = smooth(80, 80)
    cut = crop(picture, face(0, 0, 64), COLOUR)
    np.testing.assert_array_equal(cut[32:, 32:], picture[:32, :32])
    np.testing.assert_array_equal(cut[:32, 32:], np.repeat(picture[:1, :32], 32, axis=0))
    np.testing.assert_array_equal(cut[32:, :32], np.repeat(picture[:32, :1], 32, axis=1))
    # The edge is repeated however far away the frame is.
    assert (crop(picture, face(-500, 40, 64), COLOUR)[32] == picture[40, 0]).all()


@pytest.mark.parametrize("roll", [-60, -20, 13, 30, 90])
def test_a_turned_head_is_turned_back(roll):
    picture = smooth(300, 300)
    turned = np.asarray(Image.fromarray(picture).rotate(-roll, Image.Resampling.BICUBIC))
    upright = crop(picture, face(150, 150, 120), COLOUR)
    np.testing.assert_allclose(crop(turned, face(150, 150, 120, roll), COLOUR), upright, atol=3)


@pytest.mark.parametrize("roll", [-11.9, 0.0, 11.9])
def test_a_little_roll_stays(roll):
    picture = smooth(200, 200)
    np.testing.assert_array_equal(
        crop(picture, face(100, 100, 90, roll), COLOUR), crop(picture, face(100, 100, 90), COLOUR)
    )
