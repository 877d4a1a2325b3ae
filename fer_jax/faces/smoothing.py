"""Steadies what a classifier says of the faces in a video, whose frames alone flicker."""

import math
from collections.abc import Sequence

from fer_jax.faces.boxes import overlap

# Two boxes that share less of their area are two faces.
_MIN_OVERLAP = 0.3


class Smoother:
    """Replaces each face's probabilities by their mean over the past, in which the older moments count the less.

    seconds: after which a moment counts 1/e of the present one. A face is followed by its box from frame to frame.
    """

    def __init__(self, seconds: float = 0.5):
        self._seconds = seconds
        # The faces of the last frame: their boxes and smoothed probabilities.
        self._last: list[tuple[Sequence[float], dict[str, float]]] = []
        self._time = -math.inf

    def __call__(self, faces: list[dict], time: float) -> list[dict]:
        """Returns the faces of a frame, as `Classifier` does, smoothed; time: of the frame, in seconds."""
        kept = math.exp(-max(0.0, time - self._time) / self._seconds) if math.isfinite(self._time) else 0.0
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
