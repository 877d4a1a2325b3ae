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

# Patches of more bytes than this are made and multiplied part by part: they are to be read from a cache.
_CACHE_BYTES = 6 * 2**20


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
    return _by_patches(x, kernel, strides, padding, precision)


def _by_patches(x, kernel, strides, padding, precision):
    def part(x):
        patches = _patches(x, kernel.shape[:2], strides, padding)
        y = jnp.dot(_matrix(patches), kernel.reshape(-1, kernel.shape[-1]), precision=precision)
        return y.reshape(*patches.shape[:-1], kernel.shape[-1])

    num_parts = _num_parts(x, kernel.shape[:2], strides, padding)
    if num_parts == 1:
        return part(x)
    y = lax.map(part, _split(x, num_parts))
    return y.reshape(-1, *y.shape[2:])


def _num_parts(x, window, strides, padding) -> int:
    """Gives into how many parts a batch is split: the fewest whose patches, where they overlap, fit a cache."""
    if window == (1, 1):
        return 1
    patches = jax.eval_shape(lambda: _patches(x, window, strides, padding))
    fitting = (n for n in range(1, len(x)) if len(x) % n == 0 and patches.size * x.dtype.itemsize <= n * _CACHE_BYTES)
    return next(fitting, len(x))


def _split(x, num_parts: int):
    return x.reshape(num_parts, -1, *x.shape[1:])


def _forward(x, kernel, strides, padding, precision):
    return _conv(x, kernel, strides, padding, precision), (x, kernel)


def _backward(strides, padding, precision, residuals, dy):
    x, kernel = residuals
    dkernel = _dkernel(x, dy, kernel.shape, strides, padding, precision)
    return _dx(dy, kernel, x.shape, strides, padding, precision), dkernel


def _dkernel(x, dy, shape, strides, padding, precision):
    """Gives patches.T @ dy.

    XLA:CPU transposes slowly, so the image, nine times smaller, is what is transposed; the patches are then gathered
    from that, anew: to keep those of the forward pass would take too much memory.
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
    """Convolves dy with the kernel turned by 180 degrees.

    With a stride dy would have to be spread out with zeros, which are multiplied too. So the pixels of dx that meet
    the same taps, each stride-th in a row and in a column, are computed together, from those taps alone.
    """
    phases = [_dx_of_phase(dy, kernel, shape, phase, strides, padding, precision) for phase in np.ndindex(*strides)]
    batch, height, width, channels = phases[0].shape
    if len(phases) == 1:
        return phases[0]
    # [rows' phase, columns' phase, batch, height, width, channels], interleaved
    dx = jnp.stack(phases).reshape(*strides, *phases[0].shape).transpose(2, 3, 0, 4, 1, 5)
    return dx.reshape(batch, height * strides[0], width * strides[1], channels)[:, : shape[1], : shape[2]]


def _dx_of_phase(dy, kernel, shape, phase, strides, padding, precision):
    """Gives dx at rows phase[0], phase[0] + strides[0], ... and columns likewise: [batch, rows, columns, in]."""
    first, sizes, margins = [], [], []
    for axis, stride in enumerate(strides):
        # Pixel stride * j + phase meets tap first + stride * u at place j + shift - u of dy.
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
