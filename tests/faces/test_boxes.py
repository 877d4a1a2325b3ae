"""Areas of two boxes, by value."""

import pytest

from fer_jax.faces.boxes import common, overlap


@pytest.mark.parametrize(
    ("other", "expected"),
    [([0, 0, 10, 10], 1.0), ([5, 0, 10, 10], 1 / 3), ([10, 0, 5, 5], 0.0), ([20, 20, 1, 1], 0.0), ([2, 2, 5, 5], 0.25)],
)
def test_overlap_is_intersection_over_union(other, expected):
    assert overlap([0, 0, 10, 10], other) == pytest.approx(expected)
    assert overlap(other, [0, 0, 10, 10]) == pytest.approx(expected)


def test_boxes_have_the_area_of_their_intersection_in_common():
    assert common([0, 0, 10, 10], [5, 8, 10, 10]) == 10
    assert common([0, 0, 10, 10], [5, 10, 10, 10]) == 0
    assert overlap([0, 0, 0, 0], [0, 0, 0, 0]) == 0
