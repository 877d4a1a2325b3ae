"""The frames of videos, cameras and animated pictures."""

import itertools
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fer_jax.errors import UserError
from fer_jax.faces import pictures
from fer_jax.faces.answers import as_text
from fer_jax.faces.detectors import import_opencv

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ogv", ".3gp")


class VideoFrame(NamedTuple):
    """A frame. index: from 0. time: in seconds from the first frame. pixels: uint8 [height, width, 3], RGB."""

    index: int
    time: float
    pixels: np.ndarray


def is_video(source: Any) -> bool:
    """Returns whether `source` is the number of a camera, a path with a video's suffix, or a URL (rtsp://...)."""
    if isinstance(source, int):
        return True
    return isinstance(source, str | os.PathLike) and (
        os.fspath(source).lower().endswith(SUFFIXES) or "://" in os.fspath(source)
    )


def frames(source: Any, every: int = 1) -> Iterator[VideoFrame]:
    """Yields every n-th frame, upright; a camera's frames as they come, until the generator is closed.

    Args:
      source: a video or camera (see `is_video`), which needs OpenCV, or an animated picture (`pictures.is_animated`).
      every: n; 1 for all frames.

    Raises:
      UserError: there is no such file or camera, it is not a video, or OpenCV is not installed.
    """
    if every < 1:
        raise UserError(f"every is {every}; it must be at least 1")
    if is_video(source):
        return _decode(source, every)
    numbered = enumerate(pictures.frames(source))
    return (VideoFrame(index, seconds, pixels) for index, (seconds, pixels) in numbered if index % every == 0)


def _decode(source: int | str | os.PathLike, every: int) -> Iterator[VideoFrame]:
    is_camera = isinstance(source, int)
    name = f"camera {source}" if is_camera else os.fspath(source)
    cv2 = import_opencv(name)
    if not is_camera and "://" not in name and not os.path.isfile(name):
        raise UserError(f"{name} is not there")
    # OpenCV crashes on a file name whose bytes are no text, which Python has as surrogates.
    if as_text(name) != name:
        raise UserError(f"{name!r} can't be opened: OpenCV takes only file names in UTF-8; rename it")
    capture = cv2.VideoCapture(source if is_camera else name)
    try:
        if not capture.isOpened():
            raise UserError(f"{name} can't be opened" + ("" if is_camera else ": it is no video that OpenCV reads"))
        start, is_read = time.monotonic(), False
        # Skipped frames are grabbed but not decoded.
        for index in itertools.count():
            if not capture.grab():
                break
            if index % every == 0:
                # OpenCV reports no times for the frames of a camera.
                seconds = time.monotonic() - start if is_camera else capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                is_decoded, pixels = capture.retrieve()
                if is_decoded:
                    is_read = True
                    yield VideoFrame(index, seconds, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        if not is_read:
            raise UserError(f"{name} can be opened, but no frame of it can be read")
    finally:
        # Makes the camera available to other programs again, however the loop ends.
        capture.release()
