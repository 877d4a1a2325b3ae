"""An image file as the grey values that a network takes."""

import os

import numpy as np
from PIL import Image, ImageOps

from fer_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
# Naming the formats keeps a renamed file from reaching one of Pillow's rarer decoders.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Of 8 bits, and grey or with a grey that is exact where the three channels are equal.
_PLAIN_MODES = ("L", "P", "RGB", "RGBA")
_OTHER_MODES = ("1", "LA", "La", "PA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I;16B", "I;16L")


def decode(path: str | os.PathLike, *, size: int, resize: bool) -> tuple[np.ndarray, bool]:
    """Returns the grey values of an image file, uint8 [size, size], and whether it had to be brought to that size.

    Colours become the luma of ITU-R 601; transparency is left out. resize: whether images of another size, orientation
    (EXIF) or depth are brought to it (see `bring_to`); otherwise, and where a file is no image, raises UserError, which
    names the file.
    """
    expected = f"it should be a {size} x {size} grey image of 8 bits"
    try:
        with Image.open(path, formats=_FORMATS) as image:
            image.load()
            found, mode = image.size, image.mode
            if resize and mode in _PLAIN_MODES + _OTHER_MODES:
                image = ImageOps.exif_transpose(image)
                return np.asarray(bring_to(_to_grey(image), size)), found != (size, size)
            if found == (size, size) and mode in _PLAIN_MODES:
                # Pillow's grey is exact where the three channels are equal, as in a grey image saved in colour, and
                # the luma of ITU-R 601 where they aren't: what a grey photograph of the same face would show.
                return np.asarray(image.convert("L")), False
    except PermissionError:
        raise
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        raise UserError(f"{path}: unreadable as an image ({' '.join(str(error).split())}); {expected}") from error
    hint = "" if mode not in _PLAIN_MODES + _OTHER_MODES else "; --config.dataset.resize=True brings images to it"
    if found != (size, size):
        raise UserError(f"{path}: {found[0]} x {found[1]} pixels; {expected}{hint}")
    raise UserError(f"{path}: pixels of Pillow's mode {mode}; {expected}{hint}")


def bring_to(image: Image.Image, size: int) -> Image.Image:
    """Returns the largest centred square of a grey image, at size x size pixels.

    Resampled by Pillow's bilinear filter, which averages over the pixels that become one; an image of that size stays
    as it is.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cut out first: with the argument `box` resize would mix in what is beside it.
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BILINEAR)


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would cut off what is over 255, not divide.
        return Image.fromarray((np.asarray(image).astype(np.uint32) * 255 // 65535).astype(np.uint8))
    if image.mode in ("L", *_PLAIN_MODES, "1", "LA"):
        return image.convert("L")
    return image.convert("RGB").convert("L")
