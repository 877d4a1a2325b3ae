"""Cuts faces out of pictures in the form that a network takes."""

import math

import numpy as np
from PIL import Image

from fer_jax.faces.detection import Face

# FER-2013's faces are not aligned: they are rolled by -23 to 20 degrees (5th to 95th percentile). A roll of 20 degrees
# costs 3 points of accuracy, one of 10 half a point. The eyes aren't located exactly enough to gain by correcting less.
MIN_ROLL = 12.0


def crop(picture: np.ndarray, face: Face, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Returns a face's frame, upright, uint8 of `image_shape`, which is (height, width, 1 or 3 channels).

    One channel is the luma of ITU-R 601. Each pixel is the mean of the area that it covers. Where the frame leaves the
    picture, the picture's edge is repeated. A head that is turned by more than MIN_ROLL degrees is turned back.

    picture: uint8 [height, width, 3], RGB.
    """
    height, width, channels = image_shape
    roll = face.roll or 0.0
    roll = math.radians(roll) if abs(roll) > MIN_ROLL else 0.0
    x, y, side = face.frame
    # The detector's box follows the head, so the frame keeps its centre: only its axes turn.
    across = np.array([math.cos(roll), math.sin(roll)]) * side
    down = np.array([-math.sin(roll), math.cos(roll)]) * side
    upper_left = np.array([x, y]) - (across + down) / 2
    corners = upper_left + np.array([across * i + down * j for i in (0, 1) for j in (0, 1)])
    region, origin = _region(picture, corners.min(axis=0), corners.max(axis=0))
    image = Image.fromarray(region).convert("L" if channels == 1 else "RGB")
    # Sampled at least once per pixel of the picture, then averaged: Pillow's transform alone would skip pixels.
    count = max(1, math.ceil(side / min(height, width)))
    (a, d), (b, e) = across / (count * width), down / (count * height)
    c, f = upper_left - origin
    size = (count * width, count * height)
    image = image.transform(size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
    return np.asarray(image.reduce(count)).reshape(image_shape)


def _region(picture: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels from `low` to `high`, (x, y), with a margin, and the position of its upper left corner.

    Outside the picture, its edge is repeated.
    """
    # The margin is what bilinear sampling reads beyond the edge.
    low, high = np.floor(low).astype(int) - 2, np.ceil(high).astype(int) + 2
    rows = np.clip(np.arange(low[1], high[1]), 0, picture.shape[0] - 1)
    columns = np.clip(np.arange(low[0], high[0]), 0, picture.shape[1] - 1)
    return picture[rows[:, None], columns], low
