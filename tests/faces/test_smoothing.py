"""Faces of a video are followed from frame to frame, and their expressions don't flicker."""

import math

import pytest

from fer_jax.faces.smoothing import Smoother


def face(happy: float, x: int = 0) -> dict:
    emotions = {"happy": happy, "sad": 1 - happy}
    best = max(emotions, key=emotions.get)
    return {"box": [x, 0, 100, 100], "emotions": emotions, "emotion": best, "score": emotions[best], "face_score": 0.9}


def test_a_face_keeps_an_e_th_of_what_was_said_half_a_second_before():
    smoother = Smoother(seconds=0.5)
    assert smoother([face(1.0)], 0.0) == [face(1.0)]
    (found,) = smoother([face(0.0, x=5)], 0.5)
    assert found["emotions"]["happy"] == pytest.approx(math.exp(-1))
    assert sum(found["emotions"].values()) == pytest.approx(1)
    assert (found["emotion"], found["box"], found["face_score"]) == ("sad", [5, 0, 100, 100], 0.9)
    assert found["score"] == found["emotions"]["sad"]


def test_two_faces_that_pass_in_the_list_keep_their_own_past():
    smoother = Smoother()
    smoother([face(1.0), face(0.0, x=200)], 0.0)
    right, left = smoother([face(0.5, x=205), face(0.5, x=-5)], 0.01)
    assert right["emotions"]["happy"] < 0.1
    assert left["emotions"]["happy"] > 0.9


def test_a_new_face_and_one_that_was_away_start_anew():
    smoother = Smoother()
    smoother([face(1.0)], 0.0)
    assert smoother([face(0.2, x=80)], 0.01)[0]["emotions"]["happy"] == 0.2
    smoother([], 0.02)
    assert smoother([face(0.3, x=80)], 0.03)[0]["emotions"]["happy"] == 0.3


def test_of_a_flickering_face_one_thing_is_said():
    smoother, said = Smoother(), set()
    for number in range(50):
        (found,) = smoother([face(0.75 if number % 2 == 0 else 0.45)], number / 25)
        said.add(found["emotion"])
    assert said == {"happy"}


def test_frames_without_times_are_not_mixed():
    smoother = Smoother()
    smoother([face(1.0)], 0.0)
    assert smoother([face(0.2)], 0.0) == [face(0.2)]
