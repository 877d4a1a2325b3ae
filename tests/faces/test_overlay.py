"""Maps drawn over pictures."""

import numpy as np
import pytest

from fer_jax.faces import overlay


@pytest.mark.parametrize("channels", [1, 3])
def test_what_counts_nothing_stays_and_what_counts_most_gets_the_last_colour(channels):
    picture = np.full((40, 60, channels), 100, np.uint8)
    importance = np.zeros((4, 6), np.float32)
    importance[:, :3] = 1
    drawn = overlay.overlay(picture, importance)
    assert drawn.shape == (40, 60, 3)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[:, -10:], 100)
    most = overlay.legend(256, 1)[0, -1]
    np.testing.assert_allclose(drawn[:, :10], np.broadcast_to(0.25 * 100 + 0.75 * most, (40, 10, 3)), atol=1)


def test_the_legend_goes_from_dark_to_bright():
    ramp = overlay.legend(100, 2).astype(int)
    assert ramp.shape == (2, 100, 3)
    lightness = ramp[0] @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness) > -2).all()
    assert lightness[-1] - lightness[0] > 150
