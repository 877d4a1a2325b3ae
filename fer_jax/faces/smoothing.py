"""Smooths the probabilities of faces over the frames of a video, which flicker otherwise."""

import math
from collections.abc import Sequence

from fer_jax.faces.boxes import overlap

# Two boxes with a smaller intersection over union are different faces.
_MIN_OVERLAP = 0.3


class Smoother:
    """Replaces each face's probabilities by their exponential moving average over the past frames.

    seconds: the time after which a frame's weight has decayed to 1/e. Faces are tracked by their boxes.
    """

    def __init__(self, seconds: float = 0.5):
        self._seconds = seconds
        # The faces of the last frame: their boxes and smoothed probabilities.
        self._last: list[tuple[Sequence[float], dict[str, float]]] = []
        self._time = -math.inf

    def __call__(self, faces: list[dict], time: float) -> list[dict]:
        """Returns the smoothed faces of a frame; faces: as `Classifier` returns them; time: the frame's, in seconds."""
        passed = time - self._time
        # A video without times gives the same one for every frame; its faces would never change.
        kept = math.exp(-passed / self._seconds) if 0 < passed < math.inf else 0.0
        left, smoothed = list(self._last), []
        for face in faces:
            before = max(left, key=lambda other: overlap(other[0], face["box"]), default=None)
            if before is not None and overlap(before[0], face["box"]) >= _MIN_OVERLAP:
                left.remove(before)
                emotions = {name: kept * before[1][name] + (1 - kept) * p for name, p in face["emotions"].items()}
                best = max(emotions, key=emotions.get)
                face = face | {"emotions": emotions, "emotion": best, "score": emotions[best]}
            smoothed.append(face)
        self._last, self._time = [(face["box"], face["emotions"]) for face in smoothed], time
        return smoothed
