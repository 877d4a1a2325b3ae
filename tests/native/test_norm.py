"""The native sums of batch normalisation by value; test_conv.py compares their bits on any number of threads."""

import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.native import norm

SHAPES = [(1, 1), (7, 3), (2, 5, 5, 16), (40, 6, 6, 200), (3, 1, 1, 70), (64, 20, 20, 64)]


def normal(shape, seed: int, dtype):
    return jnp.asarray(np.random.default_rng(seed).normal(2, 3, shape), jnp.float32).astype(dtype)


def exact_means(*values):
    return [np.asarray(value, np.float64).reshape(-1, value.shape[-1]).mean(0) for value in values]


def exact(x):
    return np.asarray(x.astype(jnp.float32), np.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_are_the_means_of_values_and_squares(native_dtype, shape):
    x = normal(shape, 0, native_dtype)
    np.testing.assert_allclose(norm.moments(x), exact_means(exact(x), exact(x) ** 2), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("has_relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_means_are_those_of_dy_where_y_is_positive(native_dtype, shape, has_relu):
    dy, x, y = (normal(shape, seed, native_dtype) for seed in range(3))
    mean = normal(shape[-1:], 3, "float32")
    counted = exact(dy) * (exact(y) > 0) if has_relu else exact(dy)
    np.testing.assert_allclose(
        norm.gradient_means(dy, x, mean, y if has_relu else None),
        exact_means(counted, counted * (exact(x) - exact(mean))),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_sums_of_many_values_lose_no_digits(native_dtype):
    # Added one after the other in float32, 4 million values would lose digits above 2**24.
    x = jnp.full((4_000_000, 1), 3, native_dtype)
    np.testing.assert_allclose(norm.moments(x).ravel(), [3, 9], rtol=1e-6)
