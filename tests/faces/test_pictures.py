"""Every kind of picture, and every kind of input that is no picture."""

import io
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image, features

from fer_jax.errors import UserError
from fer_jax.faces import pictures

ASTRONAUT = pathlib.Path(__file__).parents[1] / "fixtures" / "astronaut.jpg"
# Every pixel has its own colour, so that every orientation is a different picture.
CORNERS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [0, 255, 255], [255, 0, 255]]], np.uint8)


def encode(image: Image.Image | np.ndarray, format: str = "PNG", **arguments) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, format, **arguments)
    return file.getvalue()


def test_every_kind_of_source_gives_the_same_picture(tmp_path):
    path = tmp_path / "пикник 🙂.png"
    path.write_bytes(encode(CORNERS))
    with path.open("rb") as file, Image.open(path) as image:
        sources = [str(path), path, path.read_bytes(), bytearray(path.read_bytes()), file, image, CORNERS]
        for source in sources:
            pixels, scale = pictures.read(source)
            np.testing.assert_array_equal(pixels, CORNERS)
            assert (pixels.dtype, scale) == (np.uint8, 1)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_every_format_is_read(format):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    picture = np.asarray(Image.open(ASTRONAUT).resize((64, 48)))
    read = pictures.read(encode(picture, format)).pixels
    assert read.shape == picture.shape
    assert np.abs(read.astype(int) - picture).mean() < 8


# How an upright picture has to be stored so that an EXIF orientation of this number turns it upright again.
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_upright_as_its_camera_says(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(CORNERS)
    if TURNS[orientation] is not None:
        stored = stored.transpose(TURNS[orientation])
    content = encode(stored, exif=exif)
    np.testing.assert_array_equal(pictures.read(content).pixels, CORNERS)
    np.testing.assert_array_equal(pictures.read(Image.open(io.BytesIO(content))).pixels, CORNERS)


def transparent(mode: str) -> Image.Image:
    """Returns a picture of an opaque pixel, grey or red, and a transparent pixel whose colour is black."""
    if mode == "LA":
        return Image.fromarray(np.array([[[90, 255], [0, 0]]], np.uint8), "LA")
    image = Image.fromarray(np.array([[[200, 0, 0, 255], [0, 0, 0, 0]]], np.uint8))
    return image if mode == "RGBA" else image.convert("P")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_white(mode):
    opaque = [90, 90, 90] if mode == "LA" else [200, 0, 0]
    np.testing.assert_array_equal(pictures.read(encode(transparent(mode))).pixels, [[opaque, [255] * 3]])
    # A half-transparent black pixel is half white.
    half = transparent(mode)
    half.putalpha(128)
    np.testing.assert_allclose(pictures.read(encode(half)).pixels[0, 1], 127, atol=1)


def test_a_palette_s_and_a_colour_s_transparency_is_white():
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([200, 0, 0, 0, 0, 0])
    expected = [[[200, 0, 0], [255] * 3]]
    for format in ("PNG", "GIF"):
        np.testing.assert_array_equal(pictures.read(encode(palette, format, transparency=1)).pixels, expected)
    colour = np.array([[[200, 0, 0], [0, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(pictures.read(encode(colour, transparency=(0, 0, 0))).pixels, expected)


def test_sixteen_bits_are_scaled_not_cut_off():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    expected = np.repeat(np.array([[0, 1, 127, 255]], np.uint8)[..., None], 3, axis=2)
    for content in (encode(values), encode(values, "TIFF"), encode(values.astype(np.int32), "TIFF")):
        np.testing.assert_array_equal(pictures.read(content).pixels, expected)


def test_cmyk_bilevel_and_grey_become_rgb():
    cmyk = Image.fromarray(np.full((8, 8, 3), (200, 30, 30), np.uint8)).convert("CMYK")
    np.testing.assert_allclose(pictures.read(encode(cmyk, "JPEG")).pixels[4, 4], (200, 30, 30), atol=4)
    bilevel = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(pictures.read(encode(bilevel)).pixels, [[[0] * 3, [255] * 3]])
    np.testing.assert_array_equal(pictures.read(encode(CORNERS[..., 0])).pixels, np.stack([CORNERS[..., 0]] * 3, -1))


def test_arrays_are_grey_rgb_or_rgba_and_bgr_if_said():
    grey = CORNERS[..., 0]
    for array in (grey, grey[..., None]):
        np.testing.assert_array_equal(pictures.read(array).pixels, np.stack([grey] * 3, -1))
    with_alpha = np.concatenate([CORNERS, np.full((2, 3, 1), 255, np.uint8)], axis=-1)
    np.testing.assert_array_equal(pictures.read(with_alpha).pixels, CORNERS)
    with_alpha[0, 0] = 0
    np.testing.assert_array_equal(pictures.read(with_alpha).pixels[0, 0], [255] * 3)
    np.testing.assert_array_equal(pictures.read(CORNERS[..., ::-1], bgr=True).pixels, CORNERS)
    np.testing.assert_array_equal(pictures.read(with_alpha[1:, :, [2, 1, 0, 3]], bgr=True).pixels, CORNERS[1:])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_an_error_that_says_what_would_be_right(array):
    with pytest.raises(UserError, match=r"an array of \w+ \[.*it must be uint8 \[height, width\]"):
        pictures.read(array)


@pytest.mark.parametrize(("size", "scale"), [((1300, 2600), 1), ((2600, 3900), 2), ((3900, 2600), 2)])
def test_a_large_jpeg_is_reduced_and_says_by_how_much(size, scale):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), (200, 400, 1000, 800))
    content = encode(image, "JPEG", exif=exif)
    whole, reduced = pictures.read(content, reduce=False), pictures.read(content)
    assert (whole.scale, reduced.scale) == (1, scale)
    assert whole.pixels.shape == (size[0], size[1], 3)  # rotated by a quarter turn
    assert reduced.pixels.shape == (size[0] // scale, size[1] // scale, 3)
    # Multiplied by the scale, the white part's edges are where they are in the original.
    for picture in (whole, reduced):
        rows, columns = (np.nonzero(picture.pixels[..., 0].max(axis=1 - axis) > 127)[0] for axis in (0, 1))
        edges = np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1]) * picture.scale
        np.testing.assert_allclose(edges, [200, 1000, size[1] - 800, size[1] - 400], atol=picture.scale)


def test_an_image_of_the_user_s_stays_as_it_is():
    image = Image.open(io.BytesIO(encode(Image.new("RGB", (2600, 2600)), "JPEG")))
    assert pictures.read(image).scale == 1
    assert image.size == (2600, 2600)


def animation(format: str) -> bytes:
    first, *others = (Image.new("RGB", (8, 8), (shade, shade, shade)) for shade in (0, 100, 200))
    return encode(first, format, save_all=True, append_images=others, duration=[100, 300, 50], lossless=True)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_frames_at_their_times(format):
    content = animation(format)
    assert pictures.is_animated(content)
    frames = list(pictures.frames(content))
    np.testing.assert_allclose([time for time, _ in frames], [0, 0.1, 0.4])
    for (_, pixels), shade in zip(frames, (0, 100, 200), strict=True):
        np.testing.assert_array_equal(pixels, np.full((8, 8, 3), shade))
    np.testing.assert_array_equal(pictures.read(content).pixels, np.zeros((8, 8, 3)))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_frames_without_a_duration_take_a_tenth_of_a_second_as_in_browsers(format):
    first, *others = (Image.new("L", (8, 8), shade) for shade in (0, 120, 240))
    content = encode(first, format, save_all=True, append_images=others, duration=0, lossless=True)
    assert [time for time, _ in pictures.frames(content)] == pytest.approx([0, 0.1, 0.2])


def test_a_file_that_can_not_be_read_is_named():
    # Reading the memory of address 0 fails as a bad disk does.
    with pytest.raises(UserError, match="/proc/self/mem can't be read: Input/output error"):
        pictures.read("/proc/self/mem")


def test_pages_and_single_pictures_are_no_animation(tmp_path):
    pages = encode(Image.new("L", (8, 8)), "TIFF", save_all=True, append_images=[Image.new("L", (8, 8))])
    for source in (pages, encode(CORNERS), encode(CORNERS, "GIF"), CORNERS, Image.fromarray(CORNERS), ASTRONAUT):
        assert not pictures.is_animated(source)


PNG = encode(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
# A PNG whose header says 20,000 x 20,000 pixels.
ENORMOUS = encode(Image.new("1", (20000, 20000)))
DAMAGED = {
    "empty": (b"", "is empty"),
    "text": (b"a letter to my aunt", "is not a picture that can be read: it is none of JPEG, PNG"),
    "svg": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "looks like SVG"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "looks like HEIC, which pip install pillow-heif"),
    "pdf": (b"%PDF-1.7", "looks like PDF"),
    "cut off": (PNG[: len(PNG) // 2], "is damaged, cut off or of a kind that can't be read"),
    "cut off soon": (PNG[:12], "is (no picture .* starts like one, and is )?(cut off or damaged|damaged, cut off)"),
    "jpeg cut off": (ASTRONAUT.read_bytes()[:4000], "is damaged, cut off .* truncated"),
    "too large": (ENORMOUS, r"is too large: Image size \(400000000 pixels\) exceeds limit"),
    "floats": (encode(np.zeros((4, 4), np.float32), "TIFF"), "floating-point"),
    "more than 16 bits": (encode(np.full((4, 4), 99999, np.int32), "TIFF"), "values of up to 99999"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_no_picture_is_said_in_one_line(kind, tmp_path):
    content, message = DAMAGED[kind]
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    for source, name in ((path, str(path)), (content, "the picture"), (io.BytesIO(content), "the picture")):
        with pytest.raises(UserError, match=message) as error:
            pictures.read(source)
        assert str(error.value).startswith(f"{name} is ")
        assert "\n" not in str(error.value)
    if kind in ("text", "empty"):
        with pytest.raises(UserError, match=message):
            pictures.is_animated(path)


def test_what_is_not_there_or_of_no_kind_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"photo\.jpg is not there"):
        pictures.read(tmp_path / "photo.jpg")
    with pytest.raises(UserError, match="is a folder, not a picture"):
        pictures.read(tmp_path)
    with pytest.raises(UserError, match="can't be read: File name too long"):
        pictures.read("x" * 5000)
    for source in (None, 3.5, io.StringIO("text"), {"a": 1}):
        with pytest.raises(UserError, match=r"it must be a path, bytes, a binary file, an image of Pillow or an array"):
            pictures.read(source)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@hypothesis.given(data=st.data())
def test_damage_anywhere_is_a_picture_or_one_line(format, data):
    content = bytearray(encode(Image.open(ASTRONAUT).resize((30, 20)), format))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, min(len(content), 300) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        pixels = pictures.read(bytes(content)).pixels
    except UserError as error:
        message, pixels = str(error), CORNERS
    else:
        message = ""
    assert "\n" not in message
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)


def test_warnings_reach_the_filters_that_all_threads_share(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.warns(Image.DecompressionBombWarning, match=r"Image size \(6 pixels\) exceeds limit"):
        np.testing.assert_array_equal(pictures.read(encode(CORNERS)).pixels, CORNERS)
