"""Areas of boxes, each [left, top, width, height]. Pure."""

from collections.abc import Sequence


def common(box: Sequence[float], other: Sequence[float]) -> float:
    """Returns the area of the intersection of two boxes."""
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return float(max(0, width) * max(0, height))


def overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """Returns the intersection over union of two boxes; 0 for two boxes without any area."""
    shared = common(box, other)
    return shared / (box[2] * box[3] + other[2] * other[3] - shared) if shared else 0.0
