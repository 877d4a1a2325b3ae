"""Annotated pictures and videos, written to a folder."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_jax.errors import UserError
from fer_jax.faces import pictures
from fer_jax.faces.annotation import annotate
from fer_jax.faces.answers import Answer
from fer_jax.faces.detectors import import_opencv

# Of an animated picture or a camera, whose frames may come at any pace.
_FRAMES_PER_SECOND = 10.0


class Saver:
    """Writes NAME_fer.jpg of a picture and NAME_fer.webm of a video to a folder, as a context manager.

    Of files in a folder that was named, the folders within it are kept. Where there is a file of that name already, of
    this run or an earlier one or the user's own, it stays, and the suffix or a number is added to the new one's name.
    """

    def __init__(self, folder: str, words: Sequence[str]):
        self._folder, self._roots = folder, [os.path.abspath(word) for word in words if os.path.isdir(word)]
        self._refused: set[str] = set()
        # The video that is being written: its source's name, its writer and its size; or its first frame alone.
        self._video: tuple[str, Any, tuple[int, int]] | None = None
        self._first: tuple[Answer, np.ndarray] | None = None

    def __enter__(self) -> "Saver":
        os.makedirs(self._folder, exist_ok=True)
        return self

    def __exit__(self, *_) -> None:
        self._end_video()

    def save(self, answer: Answer, picture: Any) -> None:
        """Writes a picture, or a frame after those before it; picture: as `pictures.read` takes it.

        Raises OSError where it can't be written, and, once a video, UserError where OpenCV, which writes videos, is not
        installed or can't.
        """
        if answer.file in self._refused:
            return
        # In the file's own resolution, which was perhaps not looked at.
        drawn = annotate(pictures.read(picture, reduce=False).pixels, answer.faces)
        if answer.frame is None:
            drawn.save(self._path(answer.file, ".jpg"), quality=92)
            return
        pixels = np.asarray(drawn)
        if (self._video and self._video[0] != answer.file) or (self._first and self._first[0].file != answer.file):
            self._end_video()
        if self._video is None and self._first is None:
            # How long a frame is shown is known from the second on.
            self._first = answer, pixels
            return
        if self._video is None:
            first, first_pixels = self._first
            try:
                self._begin_video(answer, first.time, first_pixels)
            except UserError:
                self._first = None
                self._refused.add(answer.file)
                raise
        self._write(pixels)

    def _path(self, name: str, suffix: str) -> str:
        # Of standard input, cameras and addresses, no folder is one of theirs.
        roots = self._roots if os.path.exists(name) else []
        absolute = os.path.abspath(name)
        root = next((root for root in roots if os.path.commonpath([root, absolute]) == root), None)
        relative = os.path.relpath(absolute, root) if root else os.path.basename(name)
        stem, own_suffix = ("stdin", "") if relative == "-" else os.path.splitext(relative.replace(" ", "_"))
        # a.jpg and a.png are two pictures, and so are x/a.jpg and y/a.jpg.
        stems = [stem, *([f"{stem}_{own_suffix[1:]}"] if own_suffix else [])]
        numbered = (f"{stem}_{number}" for number in itertools.count(len(stems) + 1))
        paths = (os.path.join(self._folder, f"{stem}_fer{suffix}") for stem in itertools.chain(stems, numbered))
        path = next(path for path in paths if not os.path.lexists(path))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def _begin_video(self, second: Answer, first_time: float, pixels: np.ndarray) -> None:
        cv2 = import_opencv(f"{second.file}, to be saved,")
        rate = 1 / (second.time - first_time) if second.time > first_time else _FRAMES_PER_SECOND
        size = pixels.shape[1], pixels.shape[0]
        # VP8: what browsers show, and what OpenCV's wheels can write.
        path = self._path(second.file, ".webm")
        writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"VP80"), min(rate, 120.0), size)
        if not writer.isOpened():
            raise UserError(f"{path} can't be written by this OpenCV")
        self._video = second.file, writer, size
        self._write(pixels)

    def _write(self, pixels: np.ndarray) -> None:
        import cv2

        _, writer, (width, height) = self._video
        # A strip of explanations may be higher than the first frame's.
        fitted = np.zeros((height, width, 3), np.uint8)
        part = pixels[:height, :width]
        fitted[: part.shape[0], : part.shape[1]] = part
        writer.write(cv2.cvtColor(fitted, cv2.COLOR_RGB2BGR))

    def _end_video(self) -> None:
        # A video of one frame is a video too.
        if self._video is None and self._first is not None:
            answer, pixels = self._first
            self._begin_video(answer, answer.time, pixels)
        if self._video is not None:
            self._video[1].release()
        self._video = self._first = None
