"""The face detectors of a classifier, by name."""

import importlib
import pathlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fer_jax.config import expand_path
from fer_jax.errors import UserError
from fer_jax.faces.detection import BlazeFaceDetector, Face, Frame

_YUNET = "yunet:"


class Detector(Protocol):
    """Returns the faces of each picture, uint8 [height, width, 3], RGB, with a score of at least `threshold`."""

    def __call__(
        self, pictures: Sequence[np.ndarray], *, threshold: float = 0.5, small_faces: bool = False
    ) -> list[list[Face]]: ...


def make_detector(name: str) -> Detector:
    """Returns a detector: 'blazeface', 'none' (each picture is a face), or 'yunet:FILE' through OpenCV.

    Raises UserError if there is no such detector or file, or OpenCV is not installed.
    """
    if name == "blazeface":
        return BlazeFaceDetector()
    if name == "none":
        return take_whole
    if name.startswith(_YUNET):
        return YuNetDetector(expand_path(name.removeprefix(_YUNET), "detector"))
    raise UserError(f"detector is {name!r}; it must be 'blazeface', 'none' or 'yunet:FILE.onnx'")


def take_whole(
    pictures: Sequence[np.ndarray], *, threshold: float = 0.5, small_faces: bool = False
) -> list[list[Face]]:
    """Returns one face for each picture: its largest centred square, as for training."""
    found = []
    for picture in pictures:
        height, width = picture.shape[:2]
        side = min(height, width)
        box = ((width - side) // 2, (height - side) // 2, side, side)
        found.append([Face(box, 1.0, Frame(box[0] + side / 2, box[1] + side / 2, side))])
    return found


def import_opencv(purpose: str):
    """Returns the module cv2; raises UserError, which names its purpose, if it isn't installed."""
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise UserError(f"{purpose} needs OpenCV ({error}): pip install 'fer_jax[video]'") from None


class YuNetDetector:
    """Finds faces with YuNet (https://github.com/opencv/opencv_zoo, face_detection_yunet) through OpenCV.

    OpenCV 4 reads any of its files, OpenCV 5 only the one of May 2026.
    """

    # The larger the picture, the smaller the faces that are found, and the longer it takes.
    _MAX_SIDE = 640
    _KEYPOINTS = ("right_eye", "left_eye", "nose", "right_mouth", "left_mouth")

    def __init__(self, path: str):
        """Loads the .onnx file at `path`; raises UserError if it or OpenCV is missing, or OpenCV can't read it."""
        self._cv2 = import_opencv("detector yunet:FILE")
        if not pathlib.Path(path).is_file():
            raise UserError(f"{path}, the detector's file, is not there")
        try:
            self._network = self._cv2.FaceDetectorYN.create(path, "", (self._MAX_SIDE, self._MAX_SIDE))
        except self._cv2.error as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is no detector that OpenCV {self._cv2.__version__} reads: {reason}") from None

    def __call__(
        self, pictures: Sequence[np.ndarray], *, threshold: float = 0.5, small_faces: bool = False
    ) -> list[list[Face]]:
        """See `Detector`; small_faces: whether the picture is searched at twice the size."""
        self._network.setScoreThreshold(threshold)
        found = []
        for picture in pictures:
            scale = min(1.0, (2 if small_faces else 1) * self._MAX_SIDE / max(picture.shape[:2]))
            # A line of pixels, 3000 x 1, keeps one.
            size = tuple(max(1, round(scale * length)) for length in picture.shape[1::-1])
            image = self._cv2.resize(picture, size, interpolation=self._cv2.INTER_AREA)
            self._network.setInputSize(image.shape[1::-1])
            _, rows = self._network.detect(np.ascontiguousarray(image[..., ::-1]))
            # Without a face OpenCV returns None.
            found.append([self._face(row, scale) for row in (() if rows is None else rows)])
        return found

    def _face(self, row: np.ndarray, scale: float) -> Face:
        """Returns the face in a row of OpenCV's result: the box, five keypoints and the score, at `scale`."""
        *lengths, score = row.tolist()
        box, points = np.array(lengths[:4]) / scale, np.array(lengths[4:]).reshape(5, 2) / scale
        keypoints = dict(zip(self._KEYPOINTS, map(tuple, points.tolist()), strict=True))
        return Face(tuple(box.tolist()), score, frame_by_keypoints(points), keypoints)


# Positions of eyes, nose and mouth in FER-2013's frames, in units of the frame's side: medians over 397 faces. The
# middle of the mouth stands for both of its corners.
_PLACES = np.array([[0.318, 0.395], [0.686, 0.393], [0.493, 0.592], [0.5, 0.757], [0.5, 0.757]])


def frame_by_keypoints(points: np.ndarray) -> Frame:
    """Returns the frame, at any roll, in which the keypoints are closest (least squares) to those of FER-2013.

    points: [5, 2], (x, y) of the eyes, the nose and the corners of the mouth, those on the left first.
    """
    # With points as complex numbers, rotation and scaling are one product.
    here, there = points @ [1, 1j], _PLACES @ [1, 1j]
    centred = there - there.mean()
    turn = np.vdot(centred, here - here.mean()) / np.vdot(centred, centred)
    centre = here.mean() + turn * (0.5 + 0.5j - there.mean())
    return Frame(float(centre.real), float(centre.imag), float(abs(turn)))
