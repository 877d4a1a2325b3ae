import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.recipe.state import ema_decay, move_average


def test_the_half_life_is_in_epochs():
    assert ema_decay(None, 10) is None
    decay = ema_decay(2.0, 10)
    assert decay**20 == pytest.approx(0.5)


def test_an_average_moves_towards_the_weights_and_is_quick_at_first():
    average = {"w": jnp.zeros(3)}
    for step in range(3):
        average = move_average(average, {"w": jnp.arange(3.0)}, decay=0.99, step=jnp.int32(step))
    # A step keeps (1 + step) / (10 + step) of the average.
    left = np.prod([(1 + step) / (10 + step) for step in range(3)])
    np.testing.assert_allclose(average["w"], np.arange(3) * (1 - left), rtol=1e-6)


def test_later_the_average_halves_its_distance_in_a_half_life():
    average, decay = {"w": jnp.zeros(1)}, ema_decay(1.0, 20)
    for step in range(1000, 1020):
        average = move_average(average, {"w": jnp.ones(1)}, decay=decay, step=jnp.int32(step))
    np.testing.assert_allclose(average["w"], 0.5, rtol=1e-5)
