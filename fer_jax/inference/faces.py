"""Finds the faces in pictures with BlazeFace."""

import dataclasses
import importlib.resources
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util
from PIL import Image

from fer_jax.models import blazeface

# Compiled programs take one picture, or this many: two shapes, whatever comes.
BATCH_SIZE = 16
_WEIGHTS = "blazeface_full_range.safetensors"
# A second look and a look at parts see more that is no face, so they must be surer.
_SURE = 0.7
# Of two boxes that overlap by more than this share of their union, or of the worse one, only the better is a face.
_MAX_OVERLAP = 0.3
_MAX_INSIDE = 0.6


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


class BlazeFaceDetector:
    """Finds faces from 7 % of a picture's longer side on, and half of that in parts of the picture."""

    # FER-2013's 48 pixels in units of this detector's boxes: medians over 397 of its faces. A frame that is 10 % larger
    # or smaller costs at most 0.8 points of accuracy, one of 30 % 4 to 8.
    _FRAME_SIDE, _FRAME_UP = 1.14, 0.027

    def __init__(self):
        content = importlib.resources.files("fer_jax.pretrained").joinpath(_WEIGHTS).read_bytes()
        tensors = {name: value.astype(np.float32) for name, value in safetensors.numpy.load(content).items()}
        # Handed to the compiled program, so that it holds no copy of them.
        self._variables = jax.device_put({"params": traverse_util.unflatten_dict(tensors, sep=".")})
        self._detect = jax.jit(blazeface.detect)

    def __call__(
        self, pictures: Sequence[np.ndarray], *, threshold: float = 0.5, small_faces: bool = False
    ) -> list[list[Face]]:
        """Returns the faces of each picture, the surest first.

        Args:
          pictures: uint8 [height, width, 3] each, RGB.
          threshold: the lowest score of a face.
          small_faces: whether parts of half the size are searched too, which takes about ten times as long.
        """
        sure = max(threshold, _SURE)
        images = [Image.fromarray(picture) for picture in pictures]
        views = []
        for number, image in enumerate(images):
            views.append(_View(number, whole(image.size), threshold))
            # Grey faces score lower: of 12 in four photographs 10 are found in grey as a whole, all with the parts.
            if small_faces or _is_grey(pictures[number]):
                views += [_View(number, tile, sure) for tile in tiles(image.size)]
        found = self._search(images, views)
        # The network was trained on people at a distance: a face that fills the picture is found in a wider one.
        empty = [number for number, faces in enumerate(found) if not faces]
        wider = self._search(images, [_View(number, whole(images[number].size, 2.0), sure) for number in empty])
        return [faces or more for faces, more in zip(found, wider, strict=True)]

    def _search(self, images: Sequence[Image.Image], views: Sequence[_View]) -> list[list[Face]]:
        """Returns the faces of each picture that are in the views."""
        candidates = [[] for _ in images]
        for start, stop, size in batches(len(views)):
            inputs = np.zeros((size, blazeface.IMAGE_SIZE, blazeface.IMAGE_SIZE, 3), np.uint8)
            for row, view in enumerate(views[start:stop]):
                _look(images[view.picture], view.window, inputs[row])
            cells = jax.device_get(self._detect(self._variables, inputs))
            for row, view in enumerate(views[start:stop]):
                candidates[view.picture] += _candidates(blazeface.Cells(*(x[row] for x in cells)), view)
        return [[self._face(*candidate) for candidate in suppress(each)] for each in candidates]

    def _face(self, box: np.ndarray, score: float, keypoints: np.ndarray) -> Face:
        left, top, width, height = box.tolist()
        side = (width + height) / 2
        frame = Frame(left + width / 2, top + height / 2 - self._FRAME_UP * side, self._FRAME_SIDE * side)
        named = dict(zip(blazeface.KEYPOINTS, map(tuple, keypoints.tolist()), strict=True))
        return Face((left, top, width, height), score, frame, named)


def batches(count: int) -> Iterator[tuple[int, int, int]]:
    """Yields (start, stop, size of the batch) of `count` things; sizes are 1 and BATCH_SIZE only."""
    start = 0
    while start < count:
        # On a CPU an empty place takes as long as a full one, on a GPU sixteen about as long as one.
        size = BATCH_SIZE if count - start > BATCH_SIZE // 2 else 1
        yield start, min(start + size, count), size
        start += size


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


def _candidates(cells: blazeface.Cells, view: _View) -> list[tuple]:
    """Returns (box, score, keypoints) of a view's cells with a face, in pixels of the picture."""
    chosen, side = cells.scores >= view.threshold, view.window.side
    corner = np.array([view.window.left, view.window.top])
    boxes = cells.boxes[chosen] * side + np.array([*corner, 0, 0])
    return list(zip(boxes, cells.scores[chosen].tolist(), cells.keypoints[chosen] * side + corner, strict=True))


def suppress(candidates: Sequence[tuple]) -> list[tuple]:
    """Returns the candidates (box, score, ...) that aren't another, better one's second box, the best first."""
    kept = []
    for candidate in sorted(candidates, key=lambda candidate: -candidate[1]):
        left, top, width, height = candidate[0]
        for other, *_ in kept:
            across = min(left + width, other[0] + other[2]) - max(left, other[0])
            down = min(top + height, other[1] + other[3]) - max(top, other[1])
            common, area = max(across, 0) * max(down, 0), width * height
            # A box much larger than a better one has little of itself in it, and little of the union.
            if common > _MAX_OVERLAP * (area + other[2] * other[3] - common) or common > _MAX_INSIDE * area:
                break
        else:
            kept.append(candidate)
    return kept
