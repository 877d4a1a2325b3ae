"""The names under which annotated pictures are saved."""

import os

import numpy as np
import pytest
from PIL import Image

from fer_jax.faces import overlay
from fer_jax.faces.answers import Answer
from fer_jax.faces.save import Saver
from fer_jax.faces.sources import expand


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Changes to an empty working directory and returns it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def draw(*paths) -> None:
    """Writes a picture to each path, each with a width of its own."""
    for number, path in enumerate(paths):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        Image.fromarray(np.zeros((8, 8 + number, 3), np.uint8)).save(path)


def save(out, *words: str) -> dict[str, int]:
    """Saves the pictures that the words stand for; returns {name below `out`: the picture's width}."""
    with Saver(str(out), words) as saver:
        for source in expand(words):
            saver.save(Answer(source.name, []), source.value)
    widths = {}
    for path in out.rglob("*.jpg"):
        with Image.open(path) as image:
            widths[path.relative_to(out).as_posix()] = image.width
    return widths


def test_an_absolute_folder_and_a_relative_file_go_together(here, tmp_path):
    draw(tmp_path / "faces" / "more" / "a.png", "b.png")
    assert save(tmp_path / "out", str(tmp_path / "faces"), "b.png") == {"more/a_fer.jpg": 8, "b_fer.jpg": 9}


def test_an_absolute_file_of_a_relative_folder_keeps_its_folder(here, tmp_path):
    draw("faces/more/a.png", "faces/b.png")
    assert save(tmp_path / "out", "faces", str(here / "faces/b.png")).keys() == {
        "more/a_fer.jpg",
        "b_fer.jpg",
        "b_png_fer.jpg",
    }


@pytest.mark.parametrize("word", [".", "./", "../here", "../here/x/.."])
def test_the_folders_within_the_current_one_are_kept(here, tmp_path, word):
    draw("x/a.png", "y/a.png", "a.png")
    assert save(tmp_path / "out", word) == {"x/a_fer.jpg": 8, "y/a_fer.jpg": 9, "a_fer.jpg": 10}


def test_of_many_files_of_one_name_none_is_written_over(here, tmp_path):
    files = [f"{folder}/photo.jpg" for folder in "vwxyz"]
    draw(*files)
    saved = save(tmp_path / "out", *files)
    assert saved == {
        "photo_fer.jpg": 8,
        "photo_jpg_fer.jpg": 9,
        "photo_3_fer.jpg": 10,
        "photo_4_fer.jpg": 11,
        "photo_5_fer.jpg": 12,
    }


def test_a_name_that_another_file_was_given_already_is_not_given_again(here, tmp_path):
    draw("a.png", "a.bmp", "a_bmp.png", "x y.png", "x_y.png")
    assert save(tmp_path / "out", "a.png", "a.bmp", "a_bmp.png", "x y.png", "x_y.png") == {
        "a_fer.jpg": 8,
        "a_bmp_fer.jpg": 9,
        "a_bmp_png_fer.jpg": 10,
        "x_y_fer.jpg": 11,
        "x_y_png_fer.jpg": 12,
    }


def test_nothing_is_written_outside_the_folder(here, tmp_path):
    draw("../a.png", "faces/b.png")
    assert save(tmp_path / "out", "faces", "faces/../../a.png") == {"b_fer.jpg": 8 + 1, "a_fer.jpg": 8}


def test_answers_of_an_earlier_run_and_sources_are_not_written_over(here):
    draw("photo.jpg")
    (here / "out").mkdir()
    for expected in ("photo_fer.jpg", "photo_jpg_fer.jpg", "photo_3_fer.jpg"):
        before = {path: path.read_bytes() for path in here.rglob("*.jpg")}
        save(here / "out", "photo.jpg")
        assert {path.name for path in here.rglob("*.jpg")} - {path.name for path in before} == {expected}
        assert {path: path.read_bytes() for path in before} == before
    # A source that has the name that an answer would get.
    draw("photo_fer.jpg")
    content = (here / "photo_fer.jpg").read_bytes()
    save(here, "photo.jpg", "photo_fer.jpg")
    assert (here / "photo_fer.jpg").read_bytes() == content
    assert (here / "photo_jpg_fer.jpg").exists()
    assert (here / "photo_fer_fer.jpg").exists()


def save_video(out, times: list[float]) -> list[str]:
    """Saves a video whose frames have these times; returns the messages about videos that are not saved."""
    with Saver(str(out), []) as saver:
        for number, time in enumerate(times):
            saver.save(Answer("camera 0", [], number, time), np.full((48, 64, 3), 2 * number, np.uint8))
    return saver.not_saved


@pytest.mark.video
def test_a_camera_s_video_is_as_fast_as_its_frames_came_once_the_first_was_compiled(tmp_path):
    import cv2

    # The compilation, four frames that the camera's driver buffered, then 25 frames a second, one of them late.
    gaps = [8.0, *[0.01] * 4, *[0.04] * 12, 0.5, *[0.04] * 12]
    for number in (1, 2, 10, 11, 12, len(gaps)):
        out = tmp_path / str(number)
        # A video that is too short to make up for the gaps at the beginning has none of them.
        wanted = gaps[:number] if number > 10 else [0.04] * number
        assert save_video(out, [0.0, *np.cumsum(wanted)]) == []
        capture = cv2.VideoCapture(str(out / "camera_0_fer.webm"))
        assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(25, rel=0.01)
        assert sum(capture.read()[0] for _ in range(number + 2)) == number + 1
        capture.release()


@pytest.mark.video
def test_a_video_of_one_frame_and_one_after_a_video_that_can_not_be_written_are_whole(tmp_path, monkeypatch):
    import cv2

    assert save_video(tmp_path / "one", [0.0]) == []
    frames = np.zeros((2, 48, 64, 3), np.uint8)
    # No file can have a name this long.
    long_name = "x" * 300
    with Saver(str(tmp_path / "two"), []) as saver:
        for name in (long_name, "clip.avi"):
            for number, frame in enumerate(frames):
                saver.save(Answer(name, [], number, number / 10), frame)
    (message,) = saver.not_saved
    assert f"{long_name}_fer.webm can't be written by this OpenCV" in message
    for path, count in ((tmp_path / "one" / "camera_0_fer.webm", 1), (tmp_path / "two" / "clip_fer.webm", 2)):
        capture = cv2.VideoCapture(str(path))
        assert sum(capture.read()[0] for _ in range(count + 1)) == count
        capture.release()


@pytest.mark.video
def test_a_video_has_room_for_explanations_that_its_first_frame_has_not(tmp_path):
    import cv2

    explanation = overlay.as_data_url(Image.new("RGB", (192, 192), "white"))
    face = {"box": [0, 0, 24, 24], "emotion": "happy", "score": 0.9, "explanation": explanation}
    with Saver(str(tmp_path), []) as saver:
        for number, faces in enumerate(([], [face])):
            saver.save(Answer("camera 0", faces, number, number / 10), np.zeros((48, 64, 3), np.uint8))
    capture = cv2.VideoCapture(str(tmp_path / "camera_0_fer.webm"))
    frames = [capture.read()[1] for _ in range(2)]
    capture.release()
    # Two captions of 14 pixels and the explanation, of the picture's width.
    assert [frame.shape for frame in frames] == [(48 + 64 + 28, 64, 3)] * 2
    assert frames[0][60:100].max() < 30
    assert frames[1][60:100].min() > 220


def test_a_picture_that_is_too_large_for_a_jpeg_is_named_and_the_others_are_saved(here):
    Image.new("L", (65_501, 1)).save("panorama.png")
    draw("b.png")
    with Saver("out", []) as saver:
        for source in expand(["panorama.png", "b.png"]):
            saver.save(Answer(source.name, []), source.value)
    assert saver.not_saved == ["panorama.png has 65501 x 1 pixels, too many for a JPEG"]
    assert os.listdir("out") == ["b_fer.jpg"]


def test_bytes_of_a_name_that_are_no_text_are_escaped(here):
    name = os.fsdecode(b"f\xe9.png")
    draw(name)
    assert save(here / "out", name) == {"f\\udce9_fer.jpg": 8}
