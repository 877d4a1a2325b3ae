"""Implementations of a convolution: XLA's, and for CPU a native one and matrix products over patches. Pure.

XLA:CPU's matrix products run near the processor's limit. Its convolutions of small images are far from it in bfloat16,
and in float32 for some shapes and for most gradients of kernels. `python -m scripts.benchmark step` compares training
steps with each implementation.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fer_jax.native import conv as native

Padding = Sequence[tuple[int, int]]

# Patches that exceed this size are computed and multiplied part by part, so that they are read from a cache.
_CACHE_BYTES = 6 * 2**20


def resolve(conv: str) -> Callable:
    """Returns the function for `flax.linen.Conv`'s `conv_general_dilated`.

    conv: 'lax', 'matmul' or 'native', which must have been loaded. What 'auto' means is decided in native/build.py.
    """
    functions = {"lax": lax.conv_general_dilated, "matmul": conv_general_dilated, "native": native_conv_general_dilated}
    return functions[conv]


def name_of(conv_fn: Callable) -> str:
    """Returns the name under which `resolve` knows a function."""
    return next(name for name in ("lax", "matmul", "native") if resolve(name) is conv_fn)


def native_conv_general_dilated(lhs, rhs, window_strides: Sequence[int], padding: Padding, **others):
    """Returns the same as `conv_general_dilated`, computed by the native convolution if it covers the case.

    rhs may be float32 for images of any dtype (see `keep_kernel`).
    """
    _require_kind(lhs, rhs, padding, **others)
    # The choice ignores the size of the images: all batches use the same function, so that they give the same bits.
    if native.is_covered(lhs, rhs, window_strides, padding):
        return native.convolve(lhs, rhs.astype(jnp.float32), window_strides[0], padding[0][0])
    return conv_general_dilated(lhs, rhs.astype(lhs.dtype), window_strides, padding, **others)


def keep_kernel(x, kernel, bias, *, dtype):
    """Leaves the kernel in float32, as a `promote_dtype` for `flax.linen.Conv`.

    The native convolution rounds the kernel itself, and does not round the kernel's gradient.
    """
    return x.astype(dtype), kernel, bias


def conv_general_dilated(
    lhs,
    rhs,
    window_strides: Sequence[int],
    padding: Padding,
    *,
    precision=None,
    **others,
):
    """Returns `lax.conv_general_dilated` of NHWC images and HWIO kernels without dilation or groups.

    Args:
      lhs: [batch, height, width, in].
      rhs: [kernel_height, kernel_width, in, out], of the same dtype.
      window_strides: (rows, columns).
      padding: ((top, bottom), (left, right)).
      others: further arguments of `lax.conv_general_dilated`.

    Raises:
      NotImplementedError: the convolution is of another kind.
    """
    _require_kind(lhs, rhs, padding, **others)
    return _conv(lhs, rhs, tuple(window_strides), tuple(tuple(pair) for pair in padding), precision)


def _require_kind(
    lhs,
    rhs,
    padding: Padding,
    *,
    lhs_dilation=(1, 1),
    rhs_dilation=(1, 1),
    dimension_numbers=None,
    feature_group_count: int = 1,
    precision=None,
) -> None:
    nhwc = lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
    if lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) != nhwc:
        raise NotImplementedError(f"only NHWC images and HWIO kernels, not {dimension_numbers}")
    if isinstance(padding, str):
        raise NotImplementedError(f"only explicit padding, not {padding!r}")
    if feature_group_count != 1 or {*lhs_dilation, *rhs_dilation} != {1}:
        raise NotImplementedError("no groups, no dilation")
    if lhs.shape[3] != rhs.shape[2]:
        raise TypeError(f"images of {lhs.shape[3]} channels, and kernels of {rhs.shape[2]}")


def _patches(x, window: tuple[int, int], strides: tuple[int, int], padding: Padding):
    """Returns the pixels under the kernel at each position: [batch, out_height, out_width, window * in]."""
    taps = _taps(x, (1, 2), window, strides, padding)
    return taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)


def _taps(x, axes: tuple[int, int], window, strides, padding: Padding) -> list:
    """Returns an array for each tap of the window, with the pixels that the tap meets at all positions of the kernel.

    axes: the axes of height and width.
    """
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
    return _by_patches(x, kernel, strides, padding, precision)


def _by_patches(x, kernel, strides, padding, precision):
    """Returns the convolution as patches @ kernel, computed for one part of the batch at a time."""

    def part(x):
        patches = _patches(x, kernel.shape[:2], strides, padding)
        y = jnp.dot(_matrix(patches), kernel.reshape(-1, kernel.shape[-1]), precision=precision)
        return y.reshape(*patches.shape[:-1], kernel.shape[-1])

    num_parts = _num_parts(x, kernel.shape[:2], strides, padding)
    if num_parts == 1:
        return part(x)
    y = lax.map(part, _split(x, num_parts))
    return y.reshape(-1, *y.shape[2:])[: len(x)]


def _num_parts(x, window, strides, padding) -> int:
    """Returns the number of parts into which a batch is split so that the patches of a part fit the cache."""
    if window == (1, 1):  # patches don't overlap, so they are no larger than the images
        return 1
    patches = jax.eval_shape(lambda: _patches(x, window, strides, padding))
    if not patches.size:
        return 1
    fewest = min(len(x), max(1, -(-patches.size * x.dtype.itemsize // _CACHE_BYTES)))
    # Equal parts need no padding, and up to twice as many parts cost little. But the only equal parts of a prime batch
    # are single images, whose products are too small to be fast: such a batch is padded to the fewest parts instead.
    equal = (num_parts for num_parts in range(fewest, min(len(x), 2 * fewest) + 1) if len(x) % num_parts == 0)
    images_that_fit = max(1, len(x) * _CACHE_BYTES // (patches.size * x.dtype.itemsize))
    return next(equal, -(-len(x) // images_that_fit))


def _split(x, num_parts: int):
    """Returns x as [num_parts, images, ...], padded with images of zeros if the parts would not be equal."""
    images_per_part = -(-len(x) // num_parts)
    missing = num_parts * images_per_part - len(x)
    if missing:
        x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(num_parts, images_per_part, *x.shape[1:])


def _forward(x, kernel, strides, padding, precision):
    return _conv(x, kernel, strides, padding, precision), (x, kernel)


def _backward(strides, padding, precision, residuals, dy):
    x, kernel = residuals
    dkernel = _dkernel(x, dy, kernel.shape, strides, padding, precision)
    return _dx(dy, kernel, x.shape, strides, padding, precision), dkernel


def _dkernel(x, dy, shape, strides, padding, precision):
    """Returns the kernel's gradient, patches.T @ dy.

    The patches of the forward pass are not kept, since they would take too much memory. XLA:CPU transposes slowly, so
    the images are transposed, which for a 3x3 kernel are nine times smaller, and patches are gathered from them.
    """

    def part(x, dy):
        taps = _taps(jnp.moveaxis(x, 3, 0), (2, 3), shape[:2], strides, padding)
        columns = jnp.stack(taps).reshape(len(taps) * x.shape[3], -1)
        return jnp.dot(columns, _matrix(dy), precision=precision).reshape(shape)

    num_parts = _num_parts(x, shape[:2], strides, padding)
    if num_parts == 1:
        return part(x, dy)
    total, _ = lax.scan(
        lambda total, parts: (total + part(*parts).astype(jnp.float32), None),
        jnp.zeros(shape, jnp.float32),
        (_split(x, num_parts), _split(dy, num_parts)),
    )
    return total.astype(x.dtype)


def _dx(dy, kernel, shape, strides, padding, precision):
    """Returns the gradient of the images: dy convolved with the kernel rotated by 180 degrees.

    With a stride, dy would first be dilated with zeros, which would be multiplied too. Instead, the pixels of dx that
    meet the same taps (a phase: every stride-th pixel of a row and of a column) are computed together, from those taps
    alone.
    """
    phases = [_dx_of_phase(dy, kernel, shape, phase, strides, padding, precision) for phase in np.ndindex(*strides)]
    batch, height, width, channels = phases[0].shape
    if len(phases) == 1:
        return phases[0]
    # [row phase, column phase, batch, height, width, channels] -> [batch, height, row phase, width, column phase, ...]
    dx = jnp.stack(phases).reshape(*strides, *phases[0].shape).transpose(2, 3, 0, 4, 1, 5)
    return dx.reshape(batch, height * strides[0], width * strides[1], channels)[:, : shape[1], : shape[2]]


def _dx_of_phase(dy, kernel, shape, phase, strides, padding, precision):
    """Returns dx at rows phase[0], phase[0] + strides[0], ... and columns likewise: [batch, rows, columns, in]."""
    first, sizes, margins = [], [], []
    for axis, stride in enumerate(strides):
        # Pixel stride * j + phase meets tap first + stride * u at position j + shift - u of dy.
        shift, tap = divmod(phase[axis] + padding[axis][0], stride)
        num_taps, size = len(range(tap, kernel.shape[axis], stride)), -(-shape[axis + 1] // stride)
        first.append(tap)
        sizes.append(size)
        margins.append((num_taps - 1 - shift, size + shift - dy.shape[axis + 1]))
    taps = kernel[first[0] :: strides[0], first[1] :: strides[1]]
    if not taps.size:
        return jnp.zeros((shape[0], *sizes, shape[3]), dy.dtype)
    turned = taps[::-1, ::-1].swapaxes(2, 3)
    return _by_patches(dy, turned, (1, 1), margins, precision)


_conv.defvjp(_forward, _backward)
