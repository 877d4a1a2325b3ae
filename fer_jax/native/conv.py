"""The native convolution as a function that can be differentiated; `build.load` must have been called."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def is_covered(x, kernel, strides, padding) -> bool:
    """Whether `convolve` computes a convolution: a square window of at most 7 x 7, symmetric padding.

    In float32, or in bfloat16, for which the library must have been loaded.
    """
    height, width = kernel.shape[:2]
    return (
        x.dtype in (jnp.float32, jnp.bfloat16)
        and height == width <= 7
        and strides[0] == strides[1]
        and len({margin for pair in padding for margin in pair}) == 1
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x, kernel, stride: int, pad: int):
    """Returns the convolution, [batch, out_height, out_width, out] in x's dtype.

    x: float32 or bfloat16 [batch, height, width, in]. kernel: float32 [size, size, in, out], which is rounded to x's
    dtype; its gradient is float32, not rounded. stride, pad: of rows and columns.
    """
    return _convolve(x, kernel.astype(x.dtype), stride, pad)


def _convolve(x, kernel, stride, pad):
    size, out = kernel.shape[0], kernel.shape[3]
    places = [(length + 2 * pad - size) // stride + 1 for length in x.shape[1:3]]
    y = jax.ShapeDtypeStruct((x.shape[0], *places, out), x.dtype)
    return _call("fer_jax_conv", y, x, kernel, stride, pad)


def _forward(x, kernel, stride, pad):
    # Rounded by XLA: rounded in the native code it would be copied first, since the step updates it in place.
    rounded = kernel.astype(x.dtype)
    return _convolve(x, rounded, stride, pad), (x, rounded)


def _backward(stride, pad, residuals, dy):
    x, kernel = residuals
    # Where nobody asks for it, as in a network's first convolution, XLA leaves the call out.
    dx = _call("fer_jax_conv_input_gradient", jax.ShapeDtypeStruct(x.shape, x.dtype), dy, kernel, stride, pad)
    dkernel = jax.ShapeDtypeStruct(kernel.shape, jnp.float32)
    return dx, _call("fer_jax_conv_kernel_gradient", dkernel, x, dy, stride, pad)


convolve.defvjp(_forward, _backward)


def _call(name: str, result: jax.ShapeDtypeStruct, a, b, stride: int, pad: int):
    # Attributes have the type that the handler expects: int64.
    return jax.ffi.ffi_call(f"{name}_{a.dtype}", result)(a, b, stride=np.int64(stride), pad=np.int64(pad))
