"""Reads pictures as arrays, upright and in RGB: files, bytes, file objects, Pillow images and arrays."""

import contextlib
import functools
import importlib
import io
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fer_jax.errors import UserError

# Naming the formats keeps a renamed file from reaching one of Pillow's rarer decoders. HEIF needs pillow-heif.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")
_ANIMATED_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")
# A larger JPEG is decoded at a half, a quarter or an eighth of its size, as long as its shorter side keeps this many
# pixels: 24 megapixels take 89 ms rather than 313, and the detector uses 192 pixels.
_DRAFT_SIZE = 1280
# How error messages call bytes, file objects and arrays, which have no name.
_UNNAMED = "the picture"


class Picture(NamedTuple):
    """A picture. pixels: uint8 [height, width, 3], RGB, upright. scale: pixels of the original per pixel and side."""

    pixels: np.ndarray
    scale: int = 1


def read(source: Any, *, bgr: bool = False, reduce: bool = True) -> Picture:
    """Returns a picture, upright (EXIF), in RGB, transparent parts on white; for an animation, its first frame.

    Pillow's warnings are left to the caller's filters, because all threads share them and `read` may run in any thread.

    Args:
      source: a path, bytes, a binary file object, a Pillow image, or an array, uint8 [height, width] or [height, width,
        1, 3 or 4], of grey values, RGB or RGBA.
      bgr: whether an array is in BGR or BGRA, as in OpenCV.
      reduce: whether a large JPEG file may be decoded at a lower resolution.

    Raises:
      UserError: the file is missing, no picture, damaged or too large, or an array has another shape or dtype.
    """
    if _is_array(source):
        return Picture(_from_array(np.asarray(source), bgr))
    with _opened(source) as image:
        width = image.width
        # An image that the user passed in must not be changed, which draft() would do.
        if reduce and image is not source and image.format in ("JPEG", "MPO"):
            image.draft("RGB", (_DRAFT_SIZE, _DRAFT_SIZE))
        scale = round(width / image.width)
        return Picture(_upright_pixels(image), scale)


def is_animated(source: Any) -> bool:
    """Returns whether a source as in `read`, but no file object, is animated; raises UserError as `read` does."""
    if _is_array(source):
        return False
    with _opened(source) as image:
        # The frames of other formats are pages, or the same picture in several sizes.
        return image.format in _ANIMATED_FORMATS and getattr(image, "is_animated", False)


def frames(source: Any) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (time in seconds, pixels) of each frame of an animated GIF, WebP, PNG or AVIF; pixels as in Picture.

    source: as in `is_animated`. Raises UserError as `read` does.
    """
    with _opened(source) as image:
        time = 0.0
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            pixels = _upright_pixels(image)
            yield time, pixels
            # In some formats the duration is known only once the frame is decoded. Browsers take 100 ms for none.
            time += (image.info.get("duration") or 100) / 1000


def _is_array(source: Any) -> bool:
    # Pillow's images convert themselves to arrays too.
    return hasattr(source, "__array__") and not isinstance(source, Image.Image)


def _from_array(array: np.ndarray, bgr: bool) -> np.ndarray:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise UserError(
            f"{_UNNAMED} is an array of {array.dtype} {list(array.shape)}; it must be uint8 [height, width], or "
            "[height, width, channels] with 1, 3 or 4 channels"
        )
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if bgr:
        array = array[..., [2, 1, 0, 3][:channels]]
    return array if channels == 3 else _pixels(Image.fromarray(array))


def _upright_pixels(image: Image.Image) -> np.ndarray:
    return _pixels(ImageOps.exif_transpose(image))


def _pixels(image: Image.Image) -> np.ndarray:
    """Returns an image's pixels as in Picture, but without turning it upright."""
    if image.mode.startswith("I"):
        # 16-bit values, which the conversion of some versions of Pillow clips at 255.
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError(f"values of up to {values.max()}, where 16 bits hold 65535")
        return np.repeat((values // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("pixels that are floating-point numbers; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        # Converted directly to RGB, transparent pixels would get their hidden colour, which is often black.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


@functools.cache
def _init() -> None:
    """Makes Pillow know all the formats that it can read here."""
    Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


@contextlib.contextmanager
def _opened(source: Any) -> Iterator[Image.Image]:
    """Opens a picture, and turns any error with it, here or in the block, into a UserError of one line."""
    if isinstance(source, Image.Image):
        # Not closed, because the image belongs to the user.
        with _explained(_UNNAMED, b""):
            yield source
        return
    name, file, start = _open_file(source)
    with file, _explained(name, start):
        _init()
        formats = [name for name in _FORMATS if name in Image.OPEN]
        yield Image.open(file, formats=formats)


def _open_file(source: Any) -> tuple[str, io.BufferedIOBase, bytes]:
    """Returns a picture's name, its file, and the file's first bytes."""
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        try:
            file = open(source, "rb")  # noqa: SIM115 (closed by the caller)
        except FileNotFoundError:
            raise UserError(f"{name} is not there") from None
        except IsADirectoryError:
            raise UserError(f"{name} is a folder, not a picture") from None
        except OSError as error:
            raise UserError(f"{name} can't be read: {error.strerror}") from None
    else:
        content = source.read() if hasattr(source, "read") else source
        if not isinstance(content, bytes | bytearray | memoryview):
            raise UserError(
                f"{_UNNAMED} is of type {type(source).__name__}; it must be a path, bytes, a binary file, an image of "
                "Pillow or an array"
            )
        name, file = _UNNAMED, io.BytesIO(content)
    try:
        start = file.read(512)
        file.seek(0)
    except OSError as error:  # a disk that fails, or a device
        file.close()
        raise UserError(f"{name} can't be read: {error.strerror or error}") from None
    if not start:
        file.close()
        raise UserError(f"{name} is empty")
    return name, file, start


@contextlib.contextmanager
def _explained(name: str, start: bytes) -> Iterator[None]:
    try:
        yield
    except (UserError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UserError(f"{name} is not a picture that can be read: {_guess(start)}") from None
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{name} is too large: {error}".replace(", could be decompression bomb DOS attack.", "")
        ) from None
    # On damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} is damaged, cut off or of a kind that can't be read: {reason}") from error


def _guess(start: bytes) -> str:
    """Returns a hint at what a file that Pillow can't identify is, by its first bytes."""
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "it looks like HEIC, which pip install pillow-heif lets Pillow read"
    if b"<svg" in start.lower():
        return "it looks like SVG, a drawing; save it as PNG"
    if start.startswith(b"%PDF"):
        return "it looks like PDF; save its page as PNG"
    if start.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*", b"MM")):
        return "it starts like one, and is cut off or damaged"
    return f"it is none of {', '.join(_FORMATS[:-1])}"
