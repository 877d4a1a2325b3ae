"""The names under which annotated pictures are saved."""

import os

import numpy as np
import pytest
from PIL import Image

from fer_jax.faces.answers import Answer
from fer_jax.faces.save import Saver
from fer_jax.faces.sources import expand


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def draw(*paths) -> None:
    """Writes a picture to each path, each of a width of its own."""
    for number, path in enumerate(paths):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        Image.fromarray(np.zeros((8, 8 + number, 3), np.uint8)).save(path)


def save(out, *words: str) -> dict[str, int]:
    """Saves what the words mean; returns {name below `out`: the picture's width}."""
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
    # A source that has the name of an answer.
    draw("photo_fer.jpg")
    content = (here / "photo_fer.jpg").read_bytes()
    save(here, "photo.jpg", "photo_fer.jpg")
    assert (here / "photo_fer.jpg").read_bytes() == content
    assert (here / "photo_jpg_fer.jpg").exists()
    assert (here / "photo_fer_fer.jpg").exists()
