"""The max pooling of a ResNet's stem, with a custom gradient. Pure."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fer_jax.native import pool as native_pool


def max_pool(x, *, native: bool = False):
    """Returns the 3x3 max pooling of x with stride 2 and padding 1, at half the height and width, rounded up.

    x: [batch, height, width, channels], not negative, since the padding is zero. Where the values of a window tie, the
    first one takes the gradient. native: whether to use the native code, which must have been loaded.
    """
    if native:
        return native_pool.max_pool(x)
    # The maximum over a window is the maximum of its rows' maxima: six values are compared instead of nine.
    return _max_of_three(_max_of_three(x, 1), 2)


# XLA:CPU is slow at reduce-window and at its gradient, so these are made of slices and sums of slices.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_of_three(x, axis: int):
    """Returns the maximum of pixels 2i-1, 2i and 2i+1 along `axis`, for each i."""
    return functools.reduce(jnp.maximum, _three(x, axis))


def _three(x, axis: int) -> list:
    """Returns pixels 2i-1, 2i and 2i+1 along `axis` for each i, as three arrays; pixels outside are zero."""
    size = (x.shape[axis] + 1) // 2
    margins = [(0, 0)] * x.ndim
    margins[axis] = (1, 2 * size - x.shape[axis])
    padded = jnp.pad(x, margins)
    return [lax.slice_in_dim(padded, i, i + 2 * size - 1, 2, axis) for i in range(3)]


def _max_of_three_forward(x, axis):
    y = _max_of_three(x, axis)
    return y, (x, y)


def _max_of_three_backward(axis, residuals, dy):
    x, y = residuals
    # A zero of the padding may tie with y too: its share of dy is cut off below.
    before, at, after = (tap == y for tap in _three(x, axis))
    to_before = jnp.where(before, dy, 0)
    to_at = jnp.where(at & ~before, dy, 0)
    to_after = jnp.where(after & ~at & ~before, dy, 0)
    # Pixel 2i+1 is after 2i and before 2(i+1), so both windows add to its gradient.
    margins = [(0, 0)] * x.ndim
    margins[axis] = (0, 1)
    odd = to_after + jnp.pad(lax.slice_in_dim(to_before, 1, None, axis=axis), margins)
    shape = list(x.shape)
    shape[axis] = 2 * y.shape[axis]
    dx = jnp.stack([to_at, odd], axis + 1).reshape(shape)
    return (lax.slice_in_dim(dx, 0, x.shape[axis], axis=axis),)


_max_of_three.defvjp(_max_of_three_forward, _max_of_three_backward)
