"""Max pooling and its own gradient, against NumPy."""

import math

import jax
import numpy as np
import pytest

from fer_jax.models.pool import max_pool


def numpy_max_pool(x):
    """Returns the pooled images, and the row and column in `x` that each of their pixels comes from."""
    batch, height, width, channels = x.shape
    y = np.empty((batch, (height + 1) // 2, (width + 1) // 2, channels))
    origin = np.empty((*y.shape, 2), int)
    for b, i, j, c in np.ndindex(*y.shape):
        top, left = max(0, 2 * i - 1), max(0, 2 * j - 1)
        window = x[b, top : 2 * i + 2, left : 2 * j + 2, c]
        row, column = np.unravel_index(window.argmax(), window.shape)
        y[b, i, j, c], origin[b, i, j, c] = window[row, column], (top + row, left + column)
    return y, origin


def numpy_gradient(x, origin, dy):
    """Returns the gradient to `x`: each value of `dy` goes to the pixel it comes from."""
    dx = np.zeros_like(x)
    for b, i, j, c in np.ndindex(*dy.shape):
        dx[b, *origin[b, i, j, c], c] += dy[b, i, j, c]
    return dx


@jax.jit
def pool(x, dy):
    y, gradient = jax.vjp(max_pool, x)
    return y, *gradient(dy)


@pytest.mark.parametrize("size", [(6, 6), (5, 8)])
def test_max_pool_and_its_gradient_equal_numpy(size):
    rng = np.random.default_rng(0)
    x = rng.permutation(np.arange(1.0, 1 + 2 * math.prod(size) * 3)).reshape(2, *size, 3).astype(np.float32)
    expected, origin = numpy_max_pool(x)
    dy = rng.integers(1, 9, expected.shape).astype(np.float32)
    y, dx = pool(x, dy)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dx, numpy_gradient(x, origin, dy))


@pytest.mark.parametrize("size", [(6, 6), (5, 8)])
def test_the_first_of_equal_pixels_takes_the_gradient_and_padding_takes_none(size):
    x = np.ones((2, *size, 3), np.float32)
    expected, origin = numpy_max_pool(x)
    dy = np.random.default_rng(0).integers(1, 9, expected.shape).astype(np.float32)
    np.testing.assert_array_equal(pool(x, dy)[1], numpy_gradient(x, origin, dy))
