"""The sources that the words of the command line stand for."""

import io
import os
import sys
import threading

import pytest

from fer_jax.errors import UserError
from fer_jax.faces.sources import expand, refuse_output


def names(*words) -> list[str]:
    return [source.name for source in expand(words)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pictures = ("b.JPG", "a.png", "more/c.webp", "more/d.jfif", "more/e.avif", "more/f.HEIC")
    for name in (*pictures, "notes.txt", "clip.mp4", "more/odd", "empty/readme.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_its_pictures_and_videos_by_name_and_those_of_its_folders(folder):
    assert names(".") == [
        "./a.png",
        "./b.JPG",
        "./clip.mp4",
        "./more/c.webp",
        "./more/d.jfif",
        "./more/e.avif",
        "./more/f.HEIC",
    ]


def test_words_keep_their_order_and_a_file_is_taken_whatever_it_is_called(folder):
    assert names("more/odd", "a.png", "more") == [
        "more/odd",
        "a.png",
        "more/c.webp",
        "more/d.jfif",
        "more/e.avif",
        "more/f.HEIC",
    ]


def test_a_pattern_is_sorted_and_may_reach_into_folders(folder):
    assert names("*.*g") == ["a.png"]
    assert names("**/*.webp") == ["more/c.webp"]


def test_a_number_is_a_camera_unless_there_is_a_file_of_that_name(folder):
    assert [source.value for source in expand(["0", "2"])] == [0, 2]
    (folder / "0").touch()
    assert [source.value for source in expand(["0"])] == ["0"]


def test_a_dash_is_standard_input_and_an_address_a_video(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"bytes")))
    assert [(source.name, source.value) for source in expand(["-", "rtsp://camera/1"])] == [
        ("-", b"bytes"),
        ("rtsp://camera/1", "rtsp://camera/1"),
    ]


@pytest.mark.parametrize(
    ("word", "message"),
    [("gone.jpg", "gone.jpg is not there"), ("z*.jpg", "is not there"), ("empty", "has no pictures")],
)
def test_what_is_not_there_is_said(folder, word, message):
    with pytest.raises(UserError, match=message.replace("*", r"\*")):
        names(word)


def test_answers_are_not_written_over_what_is_looked_at_or_is_called_a_picture(folder):
    (folder / "link").symlink_to("more/odd")
    sources = list(expand(["more/odd", "a.png", "rtsp://camera/1"]))
    for path in ("answers.json", "notes.txt", "more/answers", "/dev/null"):
        refuse_output(path, "--json", sources)
    for path in ("more/odd", "link", str(folder / "more" / ".." / "more" / "odd")):
        with pytest.raises(UserError, match=rf"--json is .*{path[-3:]}, which is to be looked at itself"):
            refuse_output(path, "--json", sources)
    for path in ("b.JPG", "new.png", "IMG_0001.HEIC", "clip.mp4"):
        with pytest.raises(UserError, match=f"--csv is {path}, which is named as a picture or video"):
            refuse_output(path, "--csv", sources)


def test_a_pipe_is_read_once_and_a_device_is_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[b"picture"])
    writer.start()
    assert list(expand([str(pipe)])) == [(str(pipe), b"picture")]
    writer.join()
    with pytest.raises(UserError, match="/dev/zero is a device; 0 is the first camera"):
        list(expand(["/dev/zero"]))


def test_hidden_files_and_what_was_saved_before_are_left_out_of_a_folder(folder):
    others = ("._a.png", ".thumbnails/a.png", "predictions/a_fer.jpg", "predictions/clip_fer.webm")
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert not set(names(".")) & {f"./{name}" for name in others}
    assert names("predictions/a_fer.jpg") == ["predictions/a_fer.jpg"]


def test_a_folder_that_can_not_be_listed_is_among_the_sources(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "more":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert names(".") == ["./a.png", "./b.JPG", "./clip.mp4", "./more"]
