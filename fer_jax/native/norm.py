"""The sums over all pixels that batch normalisation needs; `build.load` must have been called."""

import jax
import jax.numpy as jnp
import numpy as np


def moments(x):
    """Returns the means of x and of its squares over all axes but the channels, float32 [2, channels].

    x: float32 or bfloat16 [..., channels].
    """
    x = _as_rows(x)
    return jax.ffi.ffi_call(f"fer_jax_moments_{x.dtype}", _sums_of(x))(x) / len(x)


def gradient_means(dy, x, mean, y=None):
    """Returns the means of dy and of dy * (x - mean) over all axes but the channels, float32 [2, channels].

    dy, x, y: float32 or bfloat16 [..., channels]. y: dy counts as zero where y is not positive; None leaves dy
    as it is. mean: float32 [channels].
    """
    relu = np.int64(y is not None)
    dy, x, y = map(_as_rows, (dy, x, dy if y is None else y))
    sums = jax.ffi.ffi_call(f"fer_jax_gradient_sums_{x.dtype}", _sums_of(x))(dy, x, y, mean, relu=relu)
    return sums / len(x)


def _as_rows(x):
    return x.reshape(-1, x.shape[-1])


def _sums_of(x):
    return jax.ShapeDtypeStruct((2, x.shape[1]), jnp.float32)
