"""The frames of videos and animated pictures."""

import io
import os
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from fer_jax.errors import UserError
from fer_jax.faces import video

SHADES = (0, 60, 120, 180, 240)


def animation() -> bytes:
    first, *others = (Image.new("L", (8, 8), shade) for shade in SHADES)
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=[100, 100, 200, 200, 100])
    return file.getvalue()


@pytest.fixture
def film(tmp_path):
    """Writes a video of the same shades, at ten frames a second, and returns its path."""
    import cv2

    path = str(tmp_path / "film.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for shade in SHADES:
        writer.write(np.full((48, 64, 3), (shade, 0, 0), np.uint8))  # blue, in OpenCV's order
    writer.release()
    return path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (0, True),
        ("clip.MP4", True),
        ("a/clip.webm", True),
        ("rtsp://camera/1", True),
        ("photo.jpg", False),
        ("clip.gif", False),
        (b"clip.mp4", False),
        (None, False),
    ],
)
def test_a_video_goes_by_its_name(source, expected):
    assert video.is_video(source) is expected


def test_an_animated_picture_needs_no_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    frames = list(video.frames(animation(), every=2))
    assert [frame.index for frame in frames] == [0, 2, 4]
    np.testing.assert_allclose([frame.time for frame in frames], [0, 0.2, 0.6])
    assert [frame.pixels[0, 0].tolist() for frame in frames] == [[0] * 3, [120] * 3, [240] * 3]


@pytest.mark.video
def test_a_video_s_frames_come_with_their_times_in_rgb(film):
    frames = list(video.frames(film))
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([frame.time for frame in frames], [0, 0.1, 0.2, 0.3, 0.4], atol=0.01)
    for frame, shade in zip(frames, SHADES, strict=True):
        assert (frame.pixels.shape, frame.pixels.dtype) == ((48, 64, 3), np.uint8)
        np.testing.assert_allclose(frame.pixels.mean(axis=(0, 1)), (0, 0, shade), atol=8)


@pytest.mark.video
def test_one_frame_in_so_many(film):
    assert [(frame.index, round(frame.time, 1)) for frame in video.frames(film, every=3)] == [(0, 0.0), (3, 0.3)]
    for every in (0, -1):
        with pytest.raises(UserError, match=rf"every is {every}; it must be at least 1"):
            video.frames(film, every)


def test_without_opencv_a_video_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    for source, name in (("clip.mp4", "clip.mp4"), (0, "camera 0")):
        with pytest.raises(UserError, match=rf"{name} needs OpenCV .*: pip install 'fer_jax\[video\]'"):
            next(video.frames(source))


@pytest.mark.video
def test_what_is_no_video_is_said(tmp_path):
    with pytest.raises(UserError, match=r"clip\.mp4 is not there"):
        next(video.frames(str(tmp_path / "clip.mp4")))
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"clip\.mp4 can't be opened: it is no video that OpenCV reads"):
        next(video.frames(str(tmp_path / "clip.mp4")))
    with pytest.raises(UserError, match="camera 63 can't be opened"):
        next(video.frames(63))


@pytest.mark.video
def test_a_video_without_a_frame_and_a_name_that_is_no_text_are_said(film, tmp_path):
    # The file ends after its header.
    header = pathlib.Path(film).read_bytes().partition(b"movi")[0] + b"movi"
    (tmp_path / "cut.avi").write_bytes(header)
    with pytest.raises(UserError, match=r"cut\.avi can be opened, but no frame of it can be read"):
        list(video.frames(str(tmp_path / "cut.avi")))
    name = os.fsdecode(os.fsencode(tmp_path / "f") + b"\xe9.avi")
    pathlib.Path(film).rename(name)
    with pytest.raises(UserError, match=r"f\\udce9\.avi' can't be opened: OpenCV takes only file names in UTF-8"):
        list(video.frames(name))
