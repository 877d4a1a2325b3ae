"""Classifies the expressions of the faces in pictures with a trained network."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from fer_jax import parallel
from fer_jax.errors import UserError
from fer_jax.faces import annotation, overlay, pictures, video
from fer_jax.faces.cropping import crop
from fer_jax.faces.detection import BATCH_SIZE, Face, batches, grouped
from fer_jax.faces.detectors import make_detector, take_whole
from fer_jax.faces.pictures import Picture
from fer_jax.inference import explanation, features
from fer_jax.inference.trained_model import TrainedModel

# Enlarging faces of 24 pixels costs 7 points of accuracy; faces below 30 pixels are marked as small in the answer.
_SMALL_FACE = 30
_WHICH = ("all", "largest", "none")


@dataclasses.dataclass(frozen=True)
class _Options:
    """The arguments of `Classifier.__call__`; raises UserError if a value is invalid."""

    faces: str = "all"
    min_face: float = 24
    threshold: float = 0.5
    small_faces: bool = False
    bgr: bool = False
    explain: str | None = None

    def __post_init__(self):
        if self.faces not in _WHICH:
            raise UserError(f"faces is {self.faces!r}; it must be one of {', '.join(map(repr, _WHICH))}")
        if not 0 < self.threshold < 1:
            raise UserError(f"threshold is {self.threshold}; it must be between 0 and 1")
        # Checked before any picture is read, not when the first face is found.
        if self.explain is not None:
            explanation.check(self.explain)


class Classifier:
    """Classifies the expressions of the faces in a picture.

        classifier = Classifier()
        faces = classifier("photo.jpg")  # one dict per face, the largest first

    trained: the network, with its config and metadata.
    """

    def __init__(
        self,
        source: str | os.PathLike | None = None,
        checkpoint: str | None = None,
        *,
        detector: str = "blazeface",
    ):
        """Loads a network and a detector.

        Args:
          source: the workdir of a run or a weights file. None is the network that is installed with the package, and so
            is 'pretrained' unless there is a file or folder of that name.
          checkpoint: for a run, 'best' (by validation accuracy; the default), 'latest' or a step.
          detector: the face detector: 'blazeface', which is installed with the package, 'yunet:FILE.onnx', which runs
            in OpenCV, or 'none' for pictures that are faces.

        Raises:
          UserError: there is no such run, checkpoint, file or detector, it is damaged, or `checkpoint` is given for a
            file.
        """
        # On several devices, the computation of a single picture would only be repeated by each of them.
        mesh = parallel.make_mesh(jax.local_devices()[:1])
        self.trained = TrainedModel.load(source, checkpoint, mesh=mesh)
        self._detector = make_detector(detector)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the expressions, in the order of the probabilities that `faces` returns."""
        return self.trained.class_names

    def __call__(
        self,
        x: Any,
        *,
        faces: str = "all",
        min_face: float = 24,
        threshold: float = 0.5,
        small_faces: bool = False,
        bgr: bool = False,
        explain: str | None = None,
    ) -> Any:
        """Returns the faces of a picture, the largest first, each as a JSON-serialisable dict.

        The keys are `box`, [x, y, width, height] within the picture; `emotions`, {name: probability}; `emotion`, the
        most probable one, and `score`, its probability; `face_score`, the detector's confidence; `eyes`,
        [[x, y], [x, y]], the one on the picture's left first, and `roll`, the degrees by which the eyes are turned
        clockwise, both None if the detector doesn't locate the eyes; `small`, True, if the face has fewer than 30
        pixels a side; and `explanation`, if requested. Lengths are in pixels of the upright picture. A picture without
        a face gives [].

        Args:
          x: a picture as in `pictures.read`. A list of pictures gives a list of lists; an iterator, a video (see
            `video.is_video`) or an animated picture gives a generator of lists, which reads 16 pictures at a time. In a
            list or an iterator, only the first frame of an animated picture is used.
          faces: 'all', 'largest', or 'none' to treat each picture as a face.
          min_face: the side of the smallest face that is returned, in pixels.
          threshold: the lowest `face_score` of a face that is returned.
          small_faces: whether to search also for faces below 7 % of the picture's longer side, which takes longer.
          bgr: whether arrays are in BGR, as in OpenCV.
          explain: 'layercam', 'gradcam' or 'occlusion', which is the most faithful and the slowest, adds `explanation`:
            a picture of the face with a map of the pixels that counted for its expression
            (data:image/png;base64,...). See `inference.explanation`.

        Raises:
          UserError: a picture can't be read, or an argument is invalid. Results for other pictures of a list are lost.
        """
        options = _Options(faces, min_face, threshold, small_faces, bgr, explain)
        if hasattr(x, "read"):
            # A file object can be read only once, and is also an iterator over lines.
            x = x.read()
        if isinstance(x, Picture):
            return self._classify([x], options)[0]
        if isinstance(x, list | tuple):
            return list(self._classify_each(x, options))
        if isinstance(x, Iterator):
            return self._classify_each(x, options)
        if video.is_video(x) or pictures.is_animated(x):
            return (answer["faces"] for answer in self._stream(x, 1, options))
        return self._classify([_read(x, options)], options)[0]

    def faces(self, images: np.ndarray) -> np.ndarray:
        """Returns the probability of each expression, float32 [n, classes].

        images: faces, uint8 [n, height, width, channels], in the shape that the network was trained on, or
        [n, height, width] if it has one channel. Raises UserError if they have another shape or dtype.
        """
        return self._in_batches(self.trained.probabilities, self._with_channels(images))

    def features(self, x: Any, **options: Any) -> np.ndarray:
        """Returns the inputs of the network's last layer, float32 [n, d], for training another model on.

        Args:
          x: images of faces as in `faces`, or a picture, whose faces are in the order of `__call__`.
          **options: for a picture, the options of `__call__`.
        """
        shape = self.trained.preprocessing.image_shape
        # The last axis of a colour picture [height, width, 3 or 4] is too short for face images [n, height, width].
        if not (isinstance(x, np.ndarray) and x.shape[1:] in (shape, shape[:2])):
            options = _Options(**options)
            picture = _read(x, options)
            x = self._cut([picture], self._find([picture], options))
        return self._in_batches(self._features, self._with_channels(x))

    def top(self, x: Any, **options: Any) -> tuple[str, float] | tuple[None, None]:
        """Returns the expression of a picture's largest face and its probability; (None, None) without a face.

        Raises UserError if x is not a single picture.
        """
        found = self(x, **options | {"faces": options.get("faces", "largest")})
        if isinstance(x, list | tuple) or not isinstance(found, list):
            raise UserError("top takes one picture; stream takes a video or an animated one, and a call takes several")
        return (found[0]["emotion"], found[0]["score"]) if found else (None, None)

    def stream(self, source: Any, every: int = 1, **options: Any) -> Iterator[dict[str, Any]]:
        """Yields {'frame': number, 'time': seconds, 'faces': as from `__call__`} for the frames of a video.

        Args:
          source: the path of a video, the number of a camera (0), or an animated picture; see `video.frames`.
          every: n classifies every n-th frame only.
          **options: the options of `__call__`.
        """
        return self._stream(source, every, _Options(**options))

    def classify_frames(
        self, frames: Sequence[video.VideoFrame], smooth: Callable[[list[dict], float], list[dict]], **options: Any
    ) -> list[list[dict[str, Any]]]:
        """Returns the smoothed faces of each of a video's next frames.

        smooth: (a frame's faces, its time) -> the smoothed faces, such as a `Smoother`; the smoothed expressions are
        the ones that are explained. options: the options of `__call__`.
        """
        group, times = [Picture(frame.pixels) for frame in frames], [frame.time for frame in frames]
        return self._classify(group, _Options(**options), lambda found: list(map(smooth, found, times)))

    def annotate(self, image: Any, faces: Sequence[Mapping[str, Any]], *, bgr: bool = False) -> Image.Image:
        """Returns a picture, in RGB, with the results of `__call__` drawn on it; image, bgr: as x and bgr there."""
        return annotation.annotate(pictures.read(image, bgr=bgr, reduce=False).pixels, faces)

    def _stream(self, source: Any, every: int, options: _Options) -> Iterator[dict[str, Any]]:
        # A camera's frames are answered one by one; a file's frames are faster in groups of sixteen on a GPU.
        size = 1 if isinstance(source, int) else BATCH_SIZE
        for frames in grouped(video.frames(source, every), size):
            found = self._classify([Picture(frame.pixels) for frame in frames], options)
            for frame, faces in zip(frames, found, strict=True):
                yield {"frame": frame.index, "time": frame.time, "faces": faces}

    def _classify_each(self, sources: Iterable, options: _Options) -> Iterator[list[dict[str, Any]]]:
        for group in grouped(sources, BATCH_SIZE):
            yield from self._classify([_read(x, options) for x in group], options)

    def _find(self, group: Sequence[Picture], options: _Options) -> list[list[Face]]:
        """Returns the requested faces of each picture, the largest first."""
        detector = take_whole if options.faces == "none" else self._detector
        found = detector(
            [picture.pixels for picture in group], threshold=options.threshold, small_faces=options.small_faces
        )
        wanted = []
        for picture, faces in zip(group, found, strict=True):
            # A picture that is itself a face is kept whatever its size.
            if detector is not take_whole:
                faces = [face for face in faces if _side(face, picture) >= options.min_face]
            faces = sorted(faces, key=lambda face: -face.box[2] * face.box[3])
            wanted.append(faces[:1] if options.faces == "largest" else faces)
        return wanted

    def _cut(self, group: Sequence[Picture], found: Sequence[Sequence[Face]]) -> np.ndarray:
        """Returns the crops of the faces of all pictures, in order, as the network takes them."""
        shape = self.trained.preprocessing.image_shape
        crops = [
            crop(picture.pixels, face, shape) for picture, faces in zip(group, found, strict=True) for face in faces
        ]
        return np.stack(crops) if crops else np.zeros((0, *shape), np.uint8)

    def _classify(
        self, group: Sequence[Picture], options: _Options, smooth: Callable[[list[list[dict]]], list[list[dict]]] = list
    ) -> list[list[dict[str, Any]]]:
        """Returns the smoothed results for the faces of each picture."""
        found = self._find(group, options)
        crops = self._cut(group, found)
        rows = iter(self.faces(crops).tolist())
        pairs = zip(group, found, strict=True)
        said = smooth([[self._describe(picture, face, next(rows)) for face in faces] for picture, faces in pairs])
        if options.explain:
            faces = [face for faces in said for face in faces]
            # The final expression is explained, which smoothing may have changed.
            classes = [self.class_names.index(face["emotion"]) for face in faces]
            maps = explanation.explain(self.trained, crops, classes, options.explain)
            for face, cut, importance in zip(faces, crops, maps, strict=True):
                face["explanation"] = overlay.as_data_url(overlay.face_picture(cut, importance))
        return said

    def _describe(self, picture: Picture, face: Face, probabilities: list[float]) -> dict[str, Any]:
        scale = picture.scale
        height, width = (scale * length for length in picture.pixels.shape[:2])
        left, top = (max(0, round(scale * edge)) for edge in face.box[:2])
        right = min(width, round(scale * (face.box[0] + face.box[2])))
        bottom = min(height, round(scale * (face.box[1] + face.box[3])))
        emotions = dict(zip(self.class_names, probabilities, strict=True))
        emotion = max(emotions, key=emotions.get)
        described = {
            "box": [left, top, right - left, bottom - top],
            "emotions": emotions,
            "emotion": emotion,
            "score": emotions[emotion],
            "face_score": face.score,
            "eyes": face.eyes and [[scale * x, scale * y] for x, y in face.eyes],
            "roll": face.roll,
        }
        return described | ({"small": True} if _side(face, picture) < _SMALL_FACE else {})

    def _with_channels(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        shape = self.trained.preprocessing.image_shape
        return images[..., None] if images.shape[1:] == shape[:2] and shape[2] == 1 else images

    @functools.cached_property
    def _features(self) -> Callable:
        compute = jax.jit(features.make_features(self.trained.model, self.trained.preprocessing))
        return lambda images: np.asarray(compute(self.trained.variables, images))

    def _in_batches(self, function: Callable, images: np.ndarray) -> np.ndarray:
        """Returns function(images), applied to batches of one or BATCH_SIZE images only."""
        images = self.trained.check_images(images)
        if not len(images):
            # Computed for one image of zeros, so that the empty result has the right shape.
            return function(np.zeros((1, *images.shape[1:]), images.dtype))[:0]
        parts = []
        for start, stop, size in batches(len(images)):
            part = images[start:stop]
            padded = np.pad(part, ((0, size - len(part)), *((0, 0),) * (part.ndim - 1)))
            parts.append(function(padded)[: len(part)])
        return np.concatenate(parts)


def _read(x: Any, options: _Options) -> Picture:
    # Small faces need the file's full resolution.
    return x if isinstance(x, Picture) else pictures.read(x, bgr=options.bgr, reduce=not options.small_faces)


def _side(face: Face, picture: Picture) -> float:
    return picture.scale * (face.box[2] + face.box[3]) / 2
