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

# Compiled programs take one picture, or this many: two shapes, whatever comes.
BATCH_SIZE = 16
# A second look and a look at parts see more that is no face, so they must be surer.
_SURE = 0.7
# Two boxes that overlap by more than this share of their union are of one face, and so is one with more of itself in a
# better one.
_MAX_OVERLAP = 0.3
_MAX_INSIDE = 0.6
# A smaller face, in sides of the picture, is looked at again where it has this size, and needn't be as sure.
_CLOSE = 0.25
_UNSURE = 0.3


class Frame(NamedTuple):
    """A square around (x, y), in pixels: the part of a picture that a network is shown of a face."""

    x: float
    y: float
    side: float


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in a picture; lengths are in its pixels, from its upper left corner.

    box: (left, top, width, height), which may leave the picture. score: how sure the detector is, in [0, 1].
    frame: what to show a network of it. keypoints: {name: (x, y)}, 'right_eye' and 'left_eye' among them, which are the
    person's own, or none at all.
    """

    box: tuple[float, float, float, float]
    score: float
    frame: Frame
    keypoints: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @property
    def eyes(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """The centres of the eyes, that on the left of an upright picture first; None where they aren't known."""
        return (self.keypoints["right_eye"], self.keypoints["left_eye"]) if self.keypoints else None

    @property
    def roll(self) -> float | None:
        """By how many degrees the head is turned clockwise in the picture's plane; None where that isn't known."""
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
    """A window of the picture of that number, and the lowest score of a face in it."""

    picture: int
    window: Window
    threshold: float


class Candidate(NamedTuple):
    """What may be a face: its box (left, top, width, height), its score, and KEYPOINTS' (x, y), [6, 2]."""

    box: np.ndarray
    score: float
    keypoints: np.ndarray


class BlazeFaceDetector:
    """Finds faces from 7 % of a picture's longer side on, and half of that in parts of the picture."""

    # FER-2013's 48 pixels in units of this detector's boxes: medians over 397 of its faces. A frame that is 10 % larger
    # or smaller costs at most 0.8 points of accuracy, one of 30 % 4 to 8.
    _FRAME_SIDE, _FRAME_UP = 1.14, 0.027

    def __init__(self):
        # Handed to the compiled program, so that it holds no copy of them.
        self._variables = jax.device_put({"params": weights.read_detector()})
        self._detect = jax.jit(blazeface.detect)

    def __call__(
        self, pictures: Sequence[np.ndarray], *, threshold: float = 0.5, small_faces: bool = False
    ) -> list[list[Face]]:
        """Returns the faces of each picture, the surest first.

        Args:
          pictures: uint8 [height, width, 3] each, RGB.
          threshold: the lowest score of a face.
          small_faces: whether parts of half the size are searched too, which takes some three times as long.
        """
        sure = max(threshold, _SURE)
        images = [Image.fromarray(picture) for picture in pictures]
        views = []
        for number, image in enumerate(images):
            views.append(_View(number, whole(image.size), threshold))
            # Grey faces score lower: of 13 in six photographs 10 are found in grey as a whole, all with the parts.
            if small_faces or _is_grey(pictures[number]):
                views += [_View(number, tile, sure) for tile in tiles(image.size)]
        found = [[] for _ in images]
        for view, candidates in zip(views, self._search(images, views), strict=True):
            found[view.picture] += candidates
        found = list(map(suppress, found))
        # The network was trained on people at a distance: a face that fills the picture is found in a wider one.
        empty = [number for number, faces in enumerate(found) if not faces]
        views = [_View(number, whole(images[number].size, 2.0), sure) for number in empty]
        for view, candidates in zip(views, self._search(images, views), strict=True):
            found[view.picture] = suppress(candidates)
        self._look_closer(images, found)
        return [[self._face(candidate) for candidate in faces] for faces in found]

    def _look_closer(self, images: Sequence[Image.Image], found: list[list[Candidate]]) -> None:
        """Puts faces that are small in their picture where they are seen in a window of their own.

        In a whole picture, a face of 7 % of its side comes out a fifth too small and an eighth of itself beside its
        place, which costs some two points of accuracy each.
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
        """Returns what may be a face in each view, in pixels of the picture."""
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
    """Yields (start, stop, size of the batch) of `count` things; sizes are 1 and BATCH_SIZE only."""
    start = 0
    while start < count:
        # On a CPU an empty place takes as long as a full one, on a GPU sixteen about as long as one.
        size = BATCH_SIZE if count - start > BATCH_SIZE // 2 else 1
        yield start, min(start + size, count), size
        start += size


def grouped(items: Iterable, size: int) -> Iterator[list]:
    """Yields lists of the next `size` items, the last of which may be shorter."""
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group


def whole(size: tuple[int, int], scale: float = 1.0) -> Window:
    """Returns the square around a picture of (width, height) whose side is the longer one times `scale`."""
    width, height = size
    side = scale * max(size)
    return Window((width - side) / 2, (height - side) / 2, side)


def tiles(size: tuple[int, int]) -> Iterator[Window]:
    """Yields squares of half the longer side that cover a picture of (width, height), each half over the next."""
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
    # A sample tells; a few grey levels are what compression as JPEG adds.
    step = max(1, min(picture.shape[:2]) // 64)
    return bool(np.ptp(picture[::step, ::step].astype(np.int16), axis=2).max() <= 4)


def _look(image: Image.Image, window: Window, out: np.ndarray) -> None:
    """Writes what is in a window to `out`, uint8 [size, size, 3], and leaves what is beside the picture."""
    scale = len(out) / window.side
    # The part of the picture that is in the window, and its place in `out`.
    left, right = max(window.left, 0), min(window.left + window.side, image.width)
    top, bottom = max(window.top, 0), min(window.top + window.side, image.height)
    x, y = round((left - window.left) * scale), round((top - window.top) * scale)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    # reducing_gap: a large picture is first halved by plain means, which is quicker.
    part = image.resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom), reducing_gap=2.0)
    # Rounding may put the last line beside `out`.
    out[y : y + size[1], x : x + size[0]] = np.asarray(part)[: len(out) - y, : len(out) - x]


def _candidates(cells: blazeface.Cells, row: int, view: _View) -> list[Candidate]:
    """Returns what the cells of a view's row of a batch hold, in pixels of the picture."""
    chosen, side = cells.scores[row] >= view.threshold, view.window.side
    corner = np.array([view.window.left, view.window.top])
    boxes = cells.boxes[row][chosen] * side + np.array([*corner, 0, 0])
    keypoints = cells.keypoints[row][chosen] * side + corner
    return list(map(Candidate, boxes, cells.scores[row][chosen].tolist(), keypoints))


def suppress(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns one candidate for each face, the best first.

    Its places are the mean over those that overlap with the best, weighted by their scores, as in the paper: they
    jitter a third less.
    """
    groups = []
    for candidate in sorted(candidates, key=lambda candidate: -candidate.score):
        for group in groups:
            best = group[0]
            if overlap(candidate.box, best.box) > _MAX_OVERLAP:
                group.append(candidate)
                break
            # A part of a better one's face. One much larger than that has little of itself in it, and stays.
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
