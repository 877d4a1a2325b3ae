"""Max pooling and its own gradient, compared with NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.models.pool import max_pool
from tests.support import native


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
    """Returns the gradient of `x`: each value of `dy` goes to the pixel that the maximum comes from."""
    dx = np.zeros_like(x)
    for b, i, j, c in np.ndindex(*dy.shape):
        dx[b, *origin[b, i, j, c], c] += dy[b, i, j, c]
    return dx


@pytest.fixture(params=[False, True], ids=["xla", "native"])
def pool(request):
    """Returns a function (x, dy) -> (the pooled images, the gradient of x); dy: the gradient of the pooled images."""
    if request.param:
        native.load()

    @jax.jit
    def pool(x, dy):
        y, gradient = jax.vjp(lambda x: max_pool(x, native=request.param), x)
        return y, *gradient(dy)

    return pool


@pytest.mark.parametrize(("size", "channels"), [((6, 6), 3), ((5, 8), 3), ((5, 5), 40), ((1, 2), 16), ((1, 1), 1)])
def test_max_pool_and_its_gradient_equal_numpy(pool, size, channels):
    rng = np.random.default_rng(0)
    x = rng.permutation(np.arange(1.0, 1 + 2 * math.prod(size) * channels)).reshape(2, *size, channels)
    x = x.astype(np.float32)
    expected, origin = numpy_max_pool(x)
    dy = rng.integers(1, 9, expected.shape).astype(np.float32)
    y, dx = pool(x, dy)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dx, numpy_gradient(x, origin, dy))


@pytest.mark.parametrize("size", [(6, 6), (5, 8)])
def test_the_first_of_equal_pixels_takes_the_gradient_and_padding_takes_none(pool, size):
    x = np.ones((2, *size, 3), np.float32)
    expected, origin = numpy_max_pool(x)
    dy = np.random.default_rng(0).integers(1, 9, expected.shape).astype(np.float32)
    np.testing.assert_array_equal(pool(x, dy)[1], numpy_gradient(x, origin, dy))


def test_the_native_one_does_what_xlas_does_where_values_tie_and_are_zero(native_dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (3, 7, 10, 20)), native_dtype)
    y, gradient = jax.vjp(max_pool, x)
    native_y, native_gradient = jax.vjp(lambda x: max_pool(x, native=True), x)
    assert (native_y.dtype, native_y.shape) == (y.dtype, y.shape)
    np.testing.assert_array_equal(native_y.astype(jnp.float32), y.astype(jnp.float32))
    dy = jnp.asarray(np.random.default_rng(1).integers(1, 9, y.shape), native_dtype)
    for ours, theirs in zip(native_gradient(dy), gradient(dy), strict=True):
        np.testing.assert_array_equal(ours.astype(jnp.float32), theirs.astype(jnp.float32))


def test_the_native_one_passes_on_what_is_not_a_number(native_dtype):
    x = jnp.ones((1, 6, 6, 2), native_dtype).at[0, 2, 2, 1].set(jnp.nan)
    y = max_pool(x, native=True)
    np.testing.assert_array_equal(jnp.isnan(y), jnp.isnan(max_pool(x)))
    assert int(jnp.isnan(y).sum()) == 1
