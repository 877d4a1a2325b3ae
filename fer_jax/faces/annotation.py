"""Draws the results of a classifier onto pictures."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fer_jax.faces import overlay

_DARK, _LIGHT = (20, 20, 20), (255, 255, 255)


def annotate(picture: np.ndarray, faces: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Returns a picture with a box around each face, its expression and its probability.

    Lines and letters scale with the picture and are light on dark, so that they can be read on any background.

    Args:
      picture: uint8 [height, width, 3], RGB.
      faces: dicts with `box` [x, y, width, height] in the picture's pixels, `emotion` and `score`, as `Classifier`
        returns them. If they have an `explanation`, it is shown in a strip below the picture.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    line = max(1, round(max(image.size) / 400))
    # The faces come sorted: the smallest is drawn last, so that it isn't covered.
    for face in faces:
        x, y, width, height = face["box"]
        box = (x, y, x + width - 1, y + height - 1)
        for grown, colour, thickness in ((line, _DARK, 3 * line), (0, _LIGHT, line)):
            corners = (box[0] - grown, box[1] - grown, box[2] + grown, box[3] + grown)
            draw.rectangle(corners, outline=colour, width=thickness)
        _label(draw, image.size, box, f"{face['emotion']} {face['score']:.0%}", line)
    explained = [face for face in faces if "explanation" in face]
    return _with_strip(image, explained) if explained else image


@functools.cache
def _font(size: float, is_ascii: bool) -> ImageFont.FreeTypeFont:
    """Returns a font of this size; is_ascii: whether it needs no letters beyond ASCII, as class names may have."""
    # Pillow's own font has no others.
    if is_ascii:
        return ImageFont.load_default(size)
    import matplotlib  # takes a quarter of a second

    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _with_strip(image: Image.Image, faces: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Returns a picture with its faces' explanations below it, in rows, and a legend of the colours."""
    side = min(image.width, max(96, image.width // 6))
    # A sixth of the width is large enough to see, and the faces of a family fit in one row.
    columns, caption = max(1, image.width // side), max(14, side // 8)
    rows = -(-len(faces) // columns)
    whole = Image.new("RGB", (image.width, image.height + rows * (side + caption) + caption), _DARK)
    whole.paste(image)
    draw, font = ImageDraw.Draw(whole), _font(caption * 0.7, all(face["emotion"].isascii() for face in faces))
    for number, face in enumerate(faces):
        x, y = number % columns * side, image.height + number // columns * (side + caption)
        whole.paste(overlay.from_data_url(face["explanation"]).resize((side, side)), (x, y))
        draw.text((x + 2, y + side), f"{face['emotion']} {face['score']:.0%}", font=font, fill=_LIGHT)
    y = whole.height - caption
    draw.text((2, y), "counts little", font=font, fill=_LIGHT)
    left = round(draw.textlength("counts little ", font=font)) + 4
    ramp = Image.fromarray(overlay.legend(side, caption // 2))
    whole.paste(ramp, (left, y + caption // 4))
    draw.text((left + side + 4, y), "counts most", font=font, fill=_LIGHT)
    return whole


def _label(draw: ImageDraw.ImageDraw, size: tuple[int, int], box, text: str, line: int) -> None:
    """Writes a face's label above its box, or inside it if there is no room, and never outside the picture."""
    font = _font(max(10, 7 * line), text.isascii())
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    margin = 2 * line
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x = min(max(box[0] - line, 0), max(size[0] - width, 0))
    above = box[1] - line - height
    y = above if above >= 0 else min(max(box[1], 0), max(size[1] - height, 0))
    draw.rectangle((x, y, x + width, y + height), fill=_DARK)
    draw.text((x + margin - left, y + margin - top), text, font=font, fill=_LIGHT)
