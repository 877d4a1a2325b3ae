"""Finds the faces in pictures with BlazeFace."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from fer_jax.faces.boxes import common, overlap
from fer_jax.inference import weights
from fer_jax.models import blazeface

# The detector is compiled for one picture and for this many only, whatever the number of pictures.
BATCH_SIZE = 16
# A wider view and tiles give more false positives, so their faces need at least this score.
_SURE = 0.7
# Two boxes with a larger intersection over union are the same face, and so is a box that has a larger share of itself
# inside a better one.
_MAX_OVERLAP = 0.3
_MAX_INSIDE = 0.6
# A face below this share of the picture's longer side is detected again in a window of which it fills this share, where
# a lower score is enough.
_CLOSE = 0.25
_UNSURE = 0.3


class Frame(NamedTuple):
    """A square around (x, y), in pixels: the part of a picture that is cut out for a face."""

    x: float
    y: float
    side: float


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in a picture; lengths are in the picture's pixels, from its upper left corner.

    box: (left, top, width, height), which may leave the picture. score: the detector's confidence, in [0, 1].
    frame: the part that is cut out for the network. keypoints: {name: (x, y)}; either empty or with 'right_eye' and
    'left_eye', which are the person's own right and left.
    """

    box: tuple[float, float, float, float]
    score: float
    frame: Frame
    keypoints: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @property
    def eyes(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """The centres of the eyes, the one on the left of an upright picture first; None if they aren't known."""
        return (self.keypoints["right_eye"], self.keypoints["left_eye"]) if self.keypoints else None

    @property
    def roll(self) -> float | None:
        """The clockwise rotation of the head in the picture's plane, in degrees; None if it isn't known."""
        if self.eyes is None:
            return None
        (left, top), (right, bottom) = self.eyes
        return math.degrees(math.atan2(bottom - top, right - left))


class Window(NamedTuple):
    """A square part of a picture, which may leave it: its left and top edges and its side, in pixels."""

    left: float
    top: float
    side: float


class _View(NamedTuple):
    """A window of a picture, which is given by its index, and the lowest score of a face in it."""

    picture: int
    window: Window
    threshold: float


class Candidate(NamedTuple):
    """A possible face: its box (left, top, width, height), its score, and the (x, y) of KEYPOINTS, [6, 2]."""

    box: np.ndarray
    score: float
    keypoints: np.ndarray


class BlazeFaceDetector:
    """Finds faces of at least 7 % of a picture's longer side, and of half that size in tiles of the picture."""

    # FER-2013's frame in units of this detector's boxes: medians over 397 of its faces. A frame that is 10 % larger or
    # smaller costs at most 0.8 points of accuracy, one that is 30 % larger or smaller 4 to 8.
    _FRAME_SIDE, _FRAME_UP = 1.14, 0.027

    def __init__(self):
        # Passed to the compiled program as an argument, so that it holds no copy of them.
        self._variables = jax.device_put({"params": weights.read_detector()})
        self._detect = jax.jit(blazeface.detect)

    def __call__(
        self, pictures: Sequence[np.ndarray], *, threshold: float = 0.5, small_faces: bool = False
    ) -> list[list[Face]]:
        """Returns the faces of each picture, the highest score first.

        Args:
          pictures: uint8 [height, width, 3] each, RGB.
          threshold: the lowest score of a face.
          small_faces: whether tiles of half the size are searched too, which takes about three times as long.
        """
        sure = max(threshold, _SURE)
        images = [Image.fromarray(picture) for picture in pictures]
        views = []
        for number, image in enumerate(images):
            views.append(_View(number, whole(image.size), threshold))
            # Grey faces score lower: of 13 in six photographs made grey, whole pictures give 10 and tiles all.
            if small_faces or _is_grey(pictures[number]):
                views += [_View(number, tile, sure) for tile in tiles(image.size)]
        found = [[] for _ in images]
        for view, candidates in zip(views, self._search(images, views), strict=True):
            found[view.picture] += candidates
        found = list(map(suppress, found))
        # The detector was trained on people at a distance: a face that fills the picture is found in a wider view.
        empty = [number for number, faces in enumerate(found) if not faces]
        views = [_View(number, whole(images[number].size, 2.0), sure) for number in empty]
        for view, candidates in zip(views, self._search(images, views), strict=True):
            found[view.picture] = suppress(candidates)
        self._look_closer(images, found)
        return [[self._face(candidate) for candidate in faces] for faces in found]

    def _look_closer(self, images: Sequence[Image.Image], found: list[list[Candidate]]) -> None:
        """Replaces the boxes of faces that are small in their picture by those found in a window around each.

        In a whole picture, the box of a face of 7 % of its side is a fifth too small and displaced by an eighth of the
        face, each of which costs about two points of accuracy.
        """
        small = [
            (number, row)
            for number, faces in enumerate(found)
            for row, face in enumerate(faces)
            if face.box[2] < _CLOSE * max(images[number].size)
        ]
        views = []
        for number, row in small:
            left, top, width, height = found[number][row].box.tolist()
            side = width / _CLOSE
            window = Window(left + (width - side) / 2, top + (height - side) / 2, side)
            views.append(_View(number, window, _UNSURE))
        for (number, row), candidates in zip(small, self._search(images, views), strict=True):
            face = found[number][row]
            same = [other for other in suppress(candidates) if overlap(other.box, face.box) > _MAX_OVERLAP]
            if same:
                found[number][row] = same[0]._replace(score=face.score)

    def _search(self, images: Sequence[Image.Image], views: Sequence[_View]) -> list[list[Candidate]]:
        """Returns the candidates in each view, in pixels of the picture."""
        found = []
        for start, stop, size in batches(len(views)):
            inputs = np.zeros((size, blazeface.IMAGE_SIZE, blazeface.IMAGE_SIZE, 3), np.uint8)
            for row, view in enumerate(views[start:stop]):
                _look(images[view.picture], view.window, inputs[row])
            cells = jax.device_get(self._detect(self._variables, inputs))
            found += [_candidates(cells, row, view) for row, view in enumerate(views[start:stop])]
        return found

    def _face(self, candidate: Candidate) -> Face:
        left, top, width, height = candidate.box.tolist()
        side = (width + height) / 2
        frame = Frame(left + width / 2, top + height / 2 - self._FRAME_UP * side, self._FRAME_SIDE * side)
        keypoints = dict(zip(blazeface.KEYPOINTS, map(tuple, candidate.keypoints.tolist()), strict=True))
        return Face((left, top, width, height), candidate.score, frame, keypoints)


def batches(count: int) -> Iterator[tuple[int, int, int]]:
    """Yields (start, stop, batch size) for `count` items; the sizes are 1 and BATCH_SIZE only."""
    start = 0
    while start < count:
        # On a CPU padding takes as long as a picture; on a GPU sixteen pictures take about as long as one.
        size = BATCH_SIZE if count - start > BATCH_SIZE // 2 else 1
        yield start, min(start + size, count), size
        start += size


def grouped(items: Iterable, size: int) -> Iterator[list]:
    """Yields lists of the next `size` items, the last of which may be shorter."""
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group


def whole(size: tuple[int, int], scale: float = 1.0) -> Window:
    """Returns the square centred on a picture of (width, height), whose side is the longer one times `scale`."""
    width, height = size
    side = scale * max(size)
    return Window((width - side) / 2, (height - side) / 2, side)


def tiles(size: tuple[int, int]) -> Iterator[Window]:
    """Yields squares of half the longer side that cover a picture of (width, height) and overlap by half or more."""
    width, height = size
    side = max(size) / 2

    def starts(length: int) -> list[float]:
        if length <= side:
            return [(length - side) / 2]
        return np.linspace(0, length - side, math.ceil(2 * (length - side) / side) + 1).tolist()

    for top in starts(height):
        for left in starts(width):
            yield Window(left, top, side)


def _is_grey(picture: np.ndarray) -> bool:
    # A sample of the pixels is enough; JPEG compression adds differences of a few levels between the channels.
    step = max(1, min(picture.shape[:2]) // 64)
    return bool(np.ptp(picture[::step, ::step].astype(np.int16), axis=2).max() <= 4)


def _look(image: Image.Image, window: Window, out: np.ndarray) -> None:
    """Writes a window of a picture to `out`, uint8 [size, size, 3]; pixels outside the picture are left unchanged."""
    scale = len(out) / window.side
    # The part of the picture that is in the window, and its position in `out`.
    left, right = max(window.left, 0), min(window.left + window.side, image.width)
    top, bottom = max(window.top, 0), min(window.top + window.side, image.height)
    x, y = round((left - window.left) * scale), round((top - window.top) * scale)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    # reducing_gap: a large picture is first reduced by plain averages, which is faster.
    part = image.resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom), reducing_gap=2.0)
    # Rounding may put the last row or column outside `out`.
    out[y : y + size[1], x : x + size[0]] = np.asarray(part)[: len(out) - y, : len(out) - x]


def _candidates(cells: blazeface.Cells, row: int, view: _View) -> list[Candidate]:
    """Returns the candidates in a view, which is a row of a batch of cells, in pixels of the picture."""
    chosen, side = cells.scores[row] >= view.threshold, view.window.side
    corner = np.array([view.window.left, view.window.top])
    boxes = cells.boxes[row][chosen] * side + np.array([*corner, 0, 0])
    keypoints = cells.keypoints[row][chosen] * side + corner
    return list(map(Candidate, boxes, cells.scores[row][chosen].tolist(), keypoints))


def suppress(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns one candidate for each face, the best first.

    Its box and keypoints are the mean over the candidates that overlap with the best, weighted by their scores, as in
    the paper: they jitter a third less.
    """
    groups = []
    for candidate in sorted(candidates, key=lambda candidate: -candidate.score):
        for group in groups:
            best = group[0]
            if overlap(candidate.box, best.box) > _MAX_OVERLAP:
                group.append(candidate)
                break
            # Most of the candidate is inside a better one. A much larger one has only a small part inside, and stays.
            if common(candidate.box, best.box) > _MAX_INSIDE * candidate.box[2] * candidate.box[3]:
                break
        else:
            groups.append([candidate])
    return [_mean(group) for group in groups]


def _mean(group: Sequence[Candidate]) -> Candidate:
    weights = [candidate.score for candidate in group]
    box = np.average([candidate.box for candidate in group], axis=0, weights=weights)
    keypoints = np.average([candidate.keypoints for candidate in group], axis=0, weights=weights)
    return Candidate(box, group[0].score, keypoints)
