"""How a convolution is computed: XLA's own on accelerators, a matrix product over patches on CPU.

XLA:CPU computes small-image convolutions at a few GFLOP/s and its gradients no faster, while its matrix
products run near the processor's limit; `python -m scripts.benchmark step` measures what that makes of a training step.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = Sequence[tuple[int, int]]


def resolve(conv: str, backend: str) -> Callable:
    """Gives the function for `flax.linen.Conv`'s `conv_general_dilated`.

    conv: 'auto' (matrix products where `backend` is 'cpu', else XLA's convolution), 'lax' or 'matmul'.
    """
    if conv == "auto":
        conv = "matmul" if backend == "cpu" else "lax"
    return {"lax": lax.conv_general_dilated, "matmul": conv_general_dilated}[conv]


def conv_general_dilated(
    lhs,
    rhs,
    window_strides: Sequence[int],
    padding: Padding,
    *,
    lhs_dilation=(1, 1),
    rhs_dilation=(1, 1),
    dimension_numbers=None,
    feature_group_count: int = 1,
    precision=None,
):
    """Does what `lax.conv_general_dilated` does for NHWC images, HWIO kernels, no dilation and no groups.

    lhs: [batch, height, width, in]; rhs: [kernel_height, kernel_width, in, out], of the same dtype.
    padding: ((top, bottom), (left, right)). Raises NotImplementedError for a convolution of another kind.
    """
    nhwc = lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
    if lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) != nhwc:
        raise NotImplementedError(f"only NHWC images and HWIO kernels, not {dimension_numbers}")
    if isinstance(padding, str):
        raise NotImplementedError(f"only explicit padding, not {padding!r}")
    if feature_group_count != 1 or {*lhs_dilation, *rhs_dilation} != {1}:
        raise NotImplementedError("no groups, no dilation")
    return _conv(lhs, rhs, tuple(window_strides), tuple(tuple(pair) for pair in padding), precision)


def _patches(x, window: tuple[int, int], strides: tuple[int, int], padding: Padding):
    """Gathers what the kernel sees at each place: [batch, out_height, out_width, window * in]."""
    taps = _taps(x, (1, 2), window, strides, padding)
    return taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)


def _taps(x, axes: tuple[int, int], window, strides, padding: Padding) -> list:
    """Gives, for each place in the kernel's window, the pixels it meets; `axes` are those of height and width."""
    margins = [(0, 0, 0)] * x.ndim
    for axis, (low, high) in zip(axes, padding, strict=True):
        margins[axis] = (low, high, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), margins)
    taps = []
    for tap in np.ndindex(*window):
        start, limit, step = [0] * x.ndim, list(x.shape), [1] * x.ndim
        for axis, offset, size, stride in zip(axes, tap, window, strides, strict=True):
            places = (x.shape[axis] - size) // stride + 1
            start[axis], limit[axis], step[axis] = offset, offset + (places - 1) * stride + 1, stride
        taps.append(lax.slice(x, start, limit, step))
    return taps


def _matrix(x):
    return x.reshape(-1, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x, kernel, strides, padding, precision):
    patches = _patches(x, kernel.shape[:2], strides, padding)
    y = jnp.dot(_matrix(patches), kernel.reshape(-1, kernel.shape[-1]), precision=precision)
    return y.reshape(*patches.shape[:-1], kernel.shape[-1])


def _forward(x, kernel, strides, padding, precision):
    return _conv(x, kernel, strides, padding, precision), (x, kernel)


def _backward(strides, padding, precision, residuals, dy):
    x, kernel = residuals
    window = kernel.shape[:2]
    # dkernel is patches.T @ dy. XLA:CPU transposes slowly, so the image, nine times smaller, is what is transposed;
    # the patches are then gathered from that, anew: to keep those of the forward pass would take too much memory.
    taps = _taps(jnp.moveaxis(x, 3, 0), (2, 3), window, strides, padding)
    columns = jnp.concatenate([tap.reshape(x.shape[3], -1) for tap in taps])
    dkernel = jnp.dot(columns, _matrix(dy), precision=precision).reshape(kernel.shape)

    # dx of stride 1 is the convolution of dy with the kernel turned by 180 degrees: one matrix product. With a stride
    # dy would have to be spread out with zeros, which are multiplied too: there each tap's share is added in place.
    scatter = _dx_by_patches if strides == (1, 1) else _dx_by_taps
    return scatter(dy, kernel, x.shape, strides, padding, precision), dkernel


def _dx_by_patches(dy, kernel, shape, strides, padding, precision):
    window = kernel.shape[:2]
    margins = [
        (window[axis] - 1 - padding[axis][0], shape[axis + 1] + padding[axis][0] - dy.shape[axis + 1])
        for axis in (0, 1)
    ]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    patches = _patches(dy, window, (1, 1), margins)
    return jnp.dot(_matrix(patches), turned.reshape(-1, shape[-1]), precision=precision).reshape(shape)


def _dx_by_taps(dy, kernel, shape, strides, padding, precision):
    zero, dx = jnp.zeros((), dy.dtype), jnp.zeros(shape, dy.dtype)
    for tap in np.ndindex(*kernel.shape[:2]):
        share = jnp.dot(_matrix(dy), kernel[tap].T, precision=precision).reshape(*dy.shape[:-1], shape[-1])
        margins = []
        for axis in (0, 1):
            low = tap[axis] - padding[axis][0]
            size = (dy.shape[axis + 1] - 1) * strides[axis] + 1
            margins.append((low, shape[axis + 1] - low - size, strides[axis] - 1))
        dx += lax.pad(share, zero, [(0, 0, 0), *margins, (0, 0, 0)])
    return dx


_conv.defvjp(_forward, _backward)
