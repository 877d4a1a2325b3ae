"""The detector on a photograph of a face: Eileen Collins, NASA, in the public domain, from scikit-image's astronaut."""

import math
import pathlib

import numpy as np
import pytest
from PIL import Image

from fer_jax.faces import detection
from fer_jax.faces.detection import Face, Frame

ASTRONAUT = pathlib.Path(__file__).parents[1] / "fixtures" / "astronaut.jpg"
# The face and its eyes in the picture of 200 x 200 pixels, measured by eye.
BOX = (51, 55, 92, 92)
EYES = ((79, 85), (115, 87))


@pytest.fixture(scope="module")
def detector():
    return detection.BlazeFaceDetector()


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.asarray(Image.open(ASTRONAUT))


def on_canvas(picture: np.ndarray, width: int, height: int, left: int, top: int, shade: int = 128) -> np.ndarray:
    canvas = np.full((height, width, 3), shade, np.uint8)
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def overlap(one, other) -> float:
    """Returns the intersection of two boxes over their union."""
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(across, 0) * max(down, 0)
    return common / (one[2] * one[3] + other[2] * other[3] - common)


def test_a_face_is_found_with_its_eyes(detector, photograph):
    ((face,),) = detector([photograph])
    assert overlap(face.box, BOX) > 0.9
    assert face.score > 0.8
    np.testing.assert_allclose(face.eyes, EYES, atol=3)
    assert -2 < face.roll < 8
    x, y = face.keypoints["nose"]
    assert EYES[0][0] < x < EYES[1][0]
    assert EYES[0][1] < y < face.keypoints["mouth"][1]


@pytest.mark.parametrize(
    ("width", "height", "left", "top"), [(320, 200, 100, 0), (210, 400, 10, 150), (640, 480, 300, 20)]
)
def test_places_are_pixels_of_the_picture_whatever_its_shape(detector, photograph, width, height, left, top):
    ((face,),) = detector([on_canvas(photograph, width, height, left, top)])
    assert overlap(face.box, (BOX[0] + left, BOX[1] + top, *BOX[2:])) > 0.85
    np.testing.assert_allclose(face.eyes, np.array(EYES) + np.array([left, top]), atol=3)


def test_a_face_that_fills_the_picture_is_found_at_a_second_look(detector, photograph):
    x, y, side, _ = BOX
    close = np.ascontiguousarray(photograph[y + 8 : y + side - 4, x + 8 : x + side - 8])
    first = detector._search([Image.fromarray(close)], [detection._View(0, detection.whole(close.shape[1::-1]), 0.5)])
    ((face,),) = detector([close])
    assert first == [[]]  # nothing at the first look
    assert overlap(face.box, (-8, -8, 92, 92)) > 0.6


@pytest.mark.parametrize("scale", [0.3, 0.5])
def test_a_small_face_is_placed_as_well_as_a_large_one(detector, photograph, scale):
    small = np.asarray(Image.fromarray(photograph).resize((int(200 * scale),) * 2, Image.Resampling.BOX))
    side = round(92 * scale / 0.1)  # the face is 10 % of the picture's side, 19 of the pixels that the detector sees
    for left, top in ((10, 20), (side // 2, side // 3)):
        ((face,),) = detector([on_canvas(small, side, side, left, top)])
        assert overlap(face.box, (BOX[0] * scale + left, BOX[1] * scale + top, 92 * scale, 92 * scale)) > 0.85
        np.testing.assert_allclose(face.eyes, scale * np.array(EYES) + np.array([left, top]), atol=3 * scale + 0.5)


def test_small_faces_are_found_where_they_are_asked_for(detector, photograph):
    small = np.asarray(Image.fromarray(photograph).resize((80, 80), Image.Resampling.BOX))
    picture = on_canvas(small, 900, 700, 700, 500)  # the face is 4 % of the longer side
    assert detector([picture]) == [[]]
    ((face,),) = detector([picture], small_faces=True)
    assert overlap(face.box, (700 + 0.4 * BOX[0], 500 + 0.4 * BOX[1], 37, 37)) > 0.85


def test_parts_of_a_grey_picture_are_searched_too(detector, photograph):
    small = Image.fromarray(photograph).convert("L").resize((80, 80), Image.Resampling.BOX).convert("RGB")
    picture = on_canvas(np.asarray(small), 600, 600, 300, 200)  # the face is 6 % of the longer side
    whole = detector._search([Image.fromarray(picture)], [detection._View(0, detection.whole((600, 600)), 0.5)])
    ((face,),) = detector([picture])
    assert whole == [[]]
    assert overlap(face.box, (300 + 0.4 * BOX[0], 200 + 0.4 * BOX[1], 37, 37)) > 0.85


def test_faces_of_several_pictures_are_told_apart(detector, photograph):
    nothing = np.zeros((50, 80, 3), np.uint8)
    wide = on_canvas(photograph, 500, 220, 250, 10)
    many = [nothing, photograph, wide, nothing] * 5  # more than a batch
    found = detector(many)
    assert [len(each) for each in found] == [0, 1, 1, 0] * 5
    assert overlap(found[17][0].box, BOX) > 0.9
    assert overlap(found[18][0].box, (BOX[0] + 250, BOX[1] + 10, *BOX[2:])) > 0.8


def test_noise_and_the_smallest_pictures_have_no_face(detector):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    thin = np.zeros((1, 400, 3), np.uint8)
    assert detector([noise, thin, noise[:1, :1]], threshold=0.3, small_faces=True) == [[], [], []]
    assert detector([]) == []


def test_a_threshold_decides(detector, photograph):
    ((face,),) = detector([photograph])
    ((same,),) = detector([photograph], threshold=face.score - 0.01)
    assert same.score == face.score
    assert detector([photograph], threshold=0.99) == [[]]


@pytest.mark.parametrize("angle", [-30, 30])
def test_roll_is_clockwise(detector, photograph, angle):
    # Pillow rotates counterclockwise.
    ((face,),) = detector([np.asarray(Image.fromarray(photograph).rotate(-angle, Image.Resampling.BICUBIC))])
    assert math.isclose(face.roll, 3.6 + angle, abs_tol=5)


def test_a_face_without_keypoints_has_neither_eyes_nor_roll():
    face = Face((0, 0, 9, 9), 1.0, Frame(4.5, 4.5, 9))
    assert face.eyes is None
    assert face.roll is None


def candidate(left: float, top: float, side: float, score: float) -> detection.Candidate:
    return detection.Candidate(np.array([left, top, side, side]), score, np.full((6, 2), left))


def suppressed(*candidates: detection.Candidate) -> list[tuple]:
    return [(*face.box.tolist(), face.score) for face in detection.suppress(candidates)]


def test_of_each_face_there_is_one_box():
    best, inside = candidate(0, 0, 10, 0.9), candidate(1, 1, 4, 0.7)
    around, beside = candidate(-20, -20, 60, 0.6), candidate(8, 8, 10, 0.5)
    assert suppressed(beside, around, inside, best) == [(0, 0, 10, 10, 0.9), (-20, -20, 60, 60, 0.6)]
    assert suppressed(beside, inside, best) == [(0, 0, 10, 10, 0.9), (8, 8, 10, 10, 0.5)]
    assert suppressed(inside, beside) == [(1, 1, 4, 4, 0.7), (8, 8, 10, 10, 0.5)]
    assert suppressed() == []


def test_boxes_of_one_face_are_averaged_by_their_scores():
    (face,) = detection.suppress([candidate(0, 0, 10, 0.6), candidate(3, 0, 10, 0.3)])
    np.testing.assert_allclose(face.box, (1, 0, 10, 10))
    np.testing.assert_allclose(face.keypoints, 1)
    assert face.score == 0.6


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, 16, 17, 24, 25, 40])
def test_batches_hold_everything_once_and_have_two_sizes(count):
    each = list(detection.batches(count))
    assert [number for start, stop, _ in each for number in range(start, stop)] == list(range(count))
    assert all(stop - start <= size and size in (1, 16) for start, stop, size in each)
    assert all(stop - start > size / 2 for start, stop, size in each)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (500, 500), (1000, 100), (7, 3)])
def test_tiles_of_half_the_longer_side_hold_every_smaller_square(size):
    tiles = list(detection.tiles(size))
    side = max(size) / 2
    assert all(tile.side == side for tile in tiles)
    small = side / 2
    generator = np.random.default_rng(0)
    for _ in range(200):
        left, top = (generator.uniform(0, max(0, length - small)) for length in size)
        right, bottom = min(left + small, size[0]), min(top + small, size[1])
        assert any(
            tile.left <= left + 1e-9
            and tile.top <= top + 1e-9
            and tile.left + side >= right - 1e-9
            and tile.top + side >= bottom - 1e-9
            for tile in tiles
        )
