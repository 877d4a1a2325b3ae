"""Boxes and labels that are drawn onto pictures."""

import numpy as np
import pytest

from fer_jax.faces.annotation import annotate


def face(*box: int) -> dict:
    return {"box": list(box), "emotion": "surprise", "score": 0.876}


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_a_box_stands_out_from_any_background(shade):
    picture = np.full((300, 400, 3), shade, np.uint8)
    drawn = np.asarray(annotate(picture, [face(100, 120, 80, 60)]))
    # The box is a light line with a dark line on both sides.
    for light, dark in (((150, 100), (150, 99)), ((150, 179), (150, 180)), ((179, 140), (180, 140))):
        assert drawn[light].min() == 255
        assert drawn[dark].max() < 30
    np.testing.assert_array_equal(drawn[125:175, 105:175], shade)
    np.testing.assert_array_equal(drawn[200:], shade)
    assert (picture == shade).all()


@pytest.mark.parametrize(
    "box", [(0, 0, 60, 50), (340, 0, 60, 50), (0, 250, 60, 50), (350, 250, 50, 50), (0, 0, 400, 300)]
)
def test_a_label_is_whole_wherever_the_face_is(box):
    def letters(box) -> int:
        drawn = np.asarray(annotate(np.full((300, 400, 3), 128, np.uint8), [face(*box)])).astype(int)
        with_text = drawn - np.asarray(
            annotate(np.full((300, 400, 3), 128, np.uint8), [face(*box) | {"emotion": "", "score": 0.876}])
        )
        return int((with_text != 0).any(axis=2).sum())

    # The label changes as many pixels as one with room on all sides, except for those on the box's line.
    assert abs(letters(box) - letters((150, 150, 60, 50))) < 0.25 * letters((150, 150, 60, 50))


def test_lines_and_letters_grow_with_the_picture():
    def light(side: int) -> int:
        picture = np.zeros((side, side, 3), np.uint8)
        return int((np.asarray(annotate(picture, [face(*[side // 4] * 2, *[side // 2] * 2)])) > 200).sum())

    # In a picture of four times the side, the line and the letters have sixteen times as many pixels.
    assert 10 < light(1600) / light(400) < 22


def test_a_picture_without_faces_stays_as_it_is():
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(annotate(picture, []), picture)


def test_the_smallest_pictures_can_be_drawn_upon():
    assert annotate(np.zeros((3, 2, 3), np.uint8), [face(0, 0, 2, 3)]).size == (2, 3)


def test_letters_beyond_ascii_are_drawn():
    def label(emotion: str) -> np.ndarray:
        return np.asarray(
            annotate(np.full((300, 400, 3), 128, np.uint8), [face(100, 120, 80, 60) | {"emotion": emotion}])
        )

    # A font without the letters would draw the same box for each of them.
    assert (label("ö") != label("ж")).any()
