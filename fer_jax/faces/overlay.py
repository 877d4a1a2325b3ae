"""Draws maps of what a network looked at over its pictures."""

import base64
import functools
import io

import numpy as np
from PIL import Image

# In cividis equal steps of a value look equally large, also to the colour-blind and in print (Nuñez et al. 2018,
# https://doi.org/10.1371/journal.pone.0199239).
COLOR_MAP = "cividis"
# The map's opacity at the most important pixels: the face must be visible through it.
_MAX_OPACITY = 0.75
_DATA_URL = "data:image/png;base64,"


@functools.cache
def _colors() -> np.ndarray:
    import matplotlib  # takes a while to import, which a prediction without a map needn't wait for

    return (matplotlib.colormaps[COLOR_MAP](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def overlay(picture: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Returns the picture with a map over it, uint8 [height, width, 3]; unimportant pixels stay as they are.

    picture: uint8 [height, width, 3] or [height, width, 1]. importance: float [any height, any width] from 0 to 1,
    resized to the picture.
    """
    picture = np.broadcast_to(picture, (*picture.shape[:2], 3))
    resized = Image.fromarray(importance.astype(np.float32)).resize(picture.shape[1::-1], Image.Resampling.BILINEAR)
    values = np.clip(np.asarray(resized), 0, 1)[..., None]
    colors = _colors()[(values[..., 0] * 255).round().astype(np.uint8)]
    opacity = _MAX_OPACITY * values
    return (picture * (1 - opacity) + colors * opacity).round().astype(np.uint8)


def face_picture(face: np.ndarray, importance: np.ndarray, size: int = 192) -> Image.Image:
    """Returns a face with its map over it, `size` pixels on each side; face: uint8 [height, width, 1 or 3]."""
    enlarged = Image.fromarray(face.squeeze(-1) if face.shape[-1] == 1 else face).resize((size, size), Image.BICUBIC)
    return Image.fromarray(overlay(np.asarray(enlarged.convert("RGB")), importance))


def as_data_url(picture: Image.Image) -> str:
    """Returns a picture as a data URL, data:image/png;base64,..., which browsers and notebooks show."""
    file = io.BytesIO()
    picture.save(file, "png")
    return _DATA_URL + base64.b64encode(file.getvalue()).decode()


def from_data_url(text: str) -> Image.Image:
    """Returns the picture that `as_data_url` encoded."""
    return Image.open(io.BytesIO(base64.b64decode(text.removeprefix(_DATA_URL)))).convert("RGB")


def legend(width: int, height: int) -> np.ndarray:
    """Returns the colours from 0 at the left to 1 at the right, uint8 [height, width, 3]."""
    ramp = _colors()[np.linspace(0, 255, width).round().astype(np.uint8)]
    return np.broadcast_to(ramp, (height, width, 3)).copy()
