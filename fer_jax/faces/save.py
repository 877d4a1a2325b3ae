"""Writes annotated pictures and videos to a folder."""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fer_jax.errors import UserError
from fer_jax.faces import pictures
from fer_jax.faces.annotation import annotate
from fer_jax.faces.answers import Answer, as_text
from fer_jax.faces.detectors import import_opencv
from fer_jax.faces.sources import SAVED_PICTURE, SAVED_VIDEO

# Used if the times of the frames tell no rate. Animated pictures and cameras may have frames at any pace.
_FRAMES_PER_SECOND = 10.0
# How many frames of a video are held until its rate is known. A camera's first gap includes the compilation, and then
# its driver delivers the frames buffered meanwhile at once, usually four: the median of ten gaps is robust to that.
_HELD = 12
# The longest side of a JPEG that libjpeg writes.
_MAX_JPEG = 65_500


class Saver:
    """Writes NAME_fer.jpg for a picture and NAME_fer.webm for a video to a folder, as a context manager.

    For files in a folder among `words`, the subfolders are kept. An existing file of that name, whether of this run, of
    an earlier one or the user's own, is kept, and the original suffix or a number is added to the new file's name.

    not_saved: the error of each file that isn't written, such as a video without OpenCV, which writes videos, or a
    picture that is too large for a JPEG.
    """

    def __init__(self, folder: str, words: Sequence[str]):
        self._folder, self._roots = folder, [os.path.abspath(word) for word in words if os.path.isdir(word)]
        # The video that is being written: its source's name; its held frames, (time, pixels); its writer and size.
        self._name: str | None = None
        self._held: list[tuple[float, np.ndarray]] = []
        self._writer: tuple[Any, tuple[int, int]] | None = None
        self._refused: set[str] = set()
        self.not_saved: list[str] = []

    def __enter__(self) -> "Saver":
        os.makedirs(self._folder, exist_ok=True)
        return self

    def __exit__(self, *_) -> None:
        self._end_video()

    def save(self, answer: Answer, picture: Any) -> None:
        """Writes a picture, or appends a frame to its video; picture: as in `pictures.read`.

        Raises OSError if it can't be written.
        """
        if answer.file in self._refused:
            return
        # An error is only noted, because thousands of pictures may follow.
        with self._noting(answer.file):
            if answer.frame is not None and answer.file != self._name:
                self._end_video()
                # A missing OpenCV is reported at once, not when the held frames are written.
                import_opencv(f"{answer.file}, to be saved,")
                self._name = answer.file
            # Drawn at the file's full resolution, though the classifier may have used a lower one.
            drawn = annotate(pictures.read(picture, reduce=False).pixels, answer.faces)
            if answer.frame is None:
                if max(drawn.size) > _MAX_JPEG:
                    raise UserError(f"{answer.file} has {drawn.width} x {drawn.height} pixels, too many for a JPEG")
                drawn.save(self._path(answer.file, SAVED_PICTURE), quality=92)
            elif self._writer:
                self._write(np.asarray(drawn))
            else:
                self._held.append((answer.time, np.asarray(drawn)))
                if len(self._held) == _HELD:
                    self._begin_video()

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            self._refused.add(name)
            self.not_saved.append(str(error))

    def _path(self, name: str, ending: str) -> str:
        # Standard input, cameras and URLs are in none of the folders.
        roots = self._roots if os.path.exists(name) else []
        absolute = os.path.abspath(name)
        root = next((root for root in roots if os.path.commonpath([root, absolute]) == root), None)
        relative = os.path.relpath(absolute, root) if root else os.path.basename(name)
        # OpenCV crashes on a name whose bytes are no text.
        relative = as_text(relative)
        stem, own_suffix = ("stdin", "") if relative == "-" else os.path.splitext(relative.replace(" ", "_"))
        # a.jpg and a.png are two pictures, and so are x/a.jpg and y/a.jpg.
        stems = [stem, *([f"{stem}_{own_suffix[1:]}"] if own_suffix else [])]
        numbered = (f"{stem}_{number}" for number in itertools.count(len(stems) + 1))
        paths = (os.path.join(self._folder, f"{stem}{ending}") for stem in itertools.chain(stems, numbered))
        path = next(path for path in paths if not os.path.lexists(path))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def _begin_video(self) -> None:
        """Opens the video file and writes the held frames."""
        import cv2

        times, frames = zip(*self._held, strict=True)
        self._held = []
        # Explanations make a frame taller, and the first frame may be without a face.
        size = max(frame.shape[1] for frame in frames), max(frame.shape[0] for frame in frames)
        # VP8, which browsers play and OpenCV's wheels can write.
        path = self._path(self._name, SAVED_VIDEO)
        writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"VP80"), _rate(times), size)
        if not writer.isOpened():
            raise UserError(f"{path} can't be written by this OpenCV")
        self._writer = writer, size
        for pixels in frames:
            self._write(pixels)

    def _write(self, pixels: np.ndarray) -> None:
        import cv2

        writer, (width, height) = self._writer
        # A strip of explanations may be taller than those of the held frames.
        fitted = np.zeros((height, width, 3), np.uint8)
        part = pixels[:height, :width]
        fitted[: part.shape[0], : part.shape[1]] = part
        writer.write(cv2.cvtColor(fitted, cv2.COLOR_RGB2BGR))

    def _end_video(self) -> None:
        if self._held:
            with self._noting(self._name):
                self._begin_video()
        if self._writer:
            self._writer[0].release()
        self._name = self._writer = None


def _rate(times: Sequence[float]) -> float:
    """Returns the frames per second of a video whose first frames have these times, in seconds."""
    gaps = np.diff(times)
    usual = np.median(gaps[1:] if len(gaps) > 1 else gaps) if len(gaps) else 0.0
    return min(1 / usual, 120.0) if usual > 0 else _FRAMES_PER_SECOND
