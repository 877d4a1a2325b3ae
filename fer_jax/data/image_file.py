"""Reads an image file as the grey values that a network takes."""

import os

import numpy as np
from PIL import ExifTags, Image, ImageOps

from fer_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
# Naming the formats keeps a renamed file from reaching one of Pillow's rarer decoders.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Modes of 8 bits, grey or with a conversion to grey that is exact if the three channels are equal.
_PLAIN_MODES = ("L", "P", "RGB", "RGBA")
_OTHER_MODES = ("1", "LA", "La", "PA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I;16B", "I;16L")


def decode(path: str | os.PathLike, *, size: int, resize: bool) -> tuple[np.ndarray, bool]:
    """Returns the grey values of an image file, uint8 [size, size], and whether it had to be resized.

    Colours become the luma of ITU-R 601; transparency is ignored. resize: whether images of another size, orientation
    (EXIF) or depth are brought to it (see `bring_to`); otherwise, and where a file is no image, raises UserError, which
    names the file.
    """
    expected = f"it should be a {size} x {size} grey image of 8 bits"
    try:
        with Image.open(path, formats=_FORMATS) as image:
            image.load()
            found, mode = image.size, image.mode
            is_turned = image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
            if resize and mode in _PLAIN_MODES + _OTHER_MODES:
                image = ImageOps.exif_transpose(image)
                return np.asarray(bring_to(_to_grey(image), size)), found != (size, size)
            if found == (size, size) and mode in _PLAIN_MODES and not is_turned:
                # Pillow's grey is exact if the three channels are equal, as in a grey image saved in colour. Otherwise
                # it is the luma of ITU-R 601, which a grey photograph of the same face would show.
                return np.asarray(image.convert("L")), False
    except PermissionError:
        raise
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        raise UserError(f"{path}: unreadable as an image ({' '.join(str(error).split())}); {expected}") from error
    hint = "" if mode not in _PLAIN_MODES + _OTHER_MODES else "; --config.dataset.resize=True brings images to it"
    if found != (size, size):
        raise UserError(f"{path}: {found[0]} x {found[1]} pixels; {expected}{hint}")
    if mode in _PLAIN_MODES:
        raise UserError(f"{path}: its EXIF orientation says that it is stored turned or mirrored; {expected}{hint}")
    raise UserError(f"{path}: pixels of Pillow's mode {mode}; {expected}{hint}")


def bring_to(image: Image.Image, size: int) -> Image.Image:
    """Returns the largest centred square of a grey image, resized to size x size pixels.

    Pillow's bilinear filter averages over the pixels that are merged into one; a square that already has the size is
    returned unchanged.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Crops first, because resize with its argument `box` would mix in the pixels around the square.
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BILINEAR)


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip values above 255, not scale them.
        return Image.fromarray((np.asarray(image).astype(np.uint32) * 255 // 65535).astype(np.uint8))
    if image.mode in ("L", *_PLAIN_MODES, "1", "LA"):
        return image.convert("L")
    return image.convert("RGB").convert("L")
