"""Differentiable max pooling; `build.load` must have been called."""

import jax


@jax.custom_vjp
def max_pool(x):
    """Returns the same as `models.pool.max_pool`; x: float32 or bfloat16 [batch, height, width, channels]."""
    batch, height, width, channels = x.shape
    y = jax.ShapeDtypeStruct((batch, (height + 1) // 2, (width + 1) // 2, channels), x.dtype)
    return jax.ffi.ffi_call(f"fer_jax_max_pool_{x.dtype}", y)(x)


def _forward(x):
    y = max_pool(x)
    return y, (x, y)


def _backward(residuals, dy):
    x, y = residuals
    dx = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return (jax.ffi.ffi_call(f"fer_jax_max_pool_gradient_{x.dtype}", dx)(x, y, dy),)


max_pool.defvjp(_forward, _backward)
