"""The native convolution and the parts of batch norms that are fused with it; `build.load` must have been called.

`convolve` can be differentiated. Its three passes are also functions of their own, for callers that define a gradient.
A norm is float32 [3, channels]: factor, shift and mean. With it, max(0, x * factor + shift) is convolved instead of x.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

MAX_SIZE = 7  # largest height and width of a window


def is_covered(x, kernel, strides, padding) -> bool:
    """Returns whether `convolve` covers a convolution: a square window up to 7 x 7, symmetric padding below its size.

    The dtype is float32, or bfloat16, for which the library must have been loaded. Empty results are not covered.
    """
    (height, width), pad = kernel.shape[:2], padding[0][0]
    return (
        x.dtype in (jnp.float32, jnp.bfloat16)
        and height == width <= MAX_SIZE
        and strides[0] == strides[1]
        and {margin for pair in padding for margin in pair} == {pad}
        and 0 <= pad < height
        and min(x.shape[1:3]) + 2 * pad >= height
        and 0 not in (*x.shape, *kernel.shape)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x, kernel, stride: int, pad: int):
    """Returns the convolution, [batch, out_height, out_width, out] in x's dtype.

    x: float32 or bfloat16 [batch, height, width, in]. kernel: float32 [size, size, in, out], which is rounded to x's
    dtype; its gradient is float32, not rounded. stride, pad: for both rows and columns.
    """
    return _forward(x, kernel, stride, pad)[0]


def forward(x, kernel, stride: int, pad: int, *, norm=None, with_moments: bool = False):
    """Returns the convolution and the means of its values and their squares, float32 [2, out], or [0, out] if unwanted.

    kernel: in x's dtype.
    """
    size, out = kernel.shape[0], kernel.shape[3]
    places = [(length + 2 * pad - size) // stride + 1 for length in x.shape[1:3]]
    y = jax.ShapeDtypeStruct((x.shape[0], *places, out), x.dtype)
    y, sums = _call("fer_jax_conv", (y, _sums_of(y, with_moments)), x, kernel, _or_none(norm), stride, pad)
    return y, sums / (y.size // out)


def input_gradient(dy, kernel, shape: tuple[int, ...], stride: int, pad: int):
    """Returns the gradient with respect to x, which has the given shape; kernel: in dy's dtype."""
    dx = jax.ShapeDtypeStruct(shape, dy.dtype)
    others = [_or_none(None), *[jnp.zeros((0, 0, 0, 0), dy.dtype)] * 3]
    return _call("fer_jax_conv_input_gradient", (dx, _sums_of(dx, False)), dy, kernel, *others, stride, pad)[0]


def normalized_input_gradient(dy, kernel, raw, norm, stride: int, pad: int, *, active=None, others=None):
    """Returns the gradient with respect to the norm's output, and two means for the norm's own gradient.

    The gradient is zero where the output is not positive. The means are those of the gradient and of its product with
    raw - mean, float32 [2, in], as in `norm.gradient_means`. raw: the norm's input. active: the norm's output, if it
    was written and isn't made from raw by the norm alone. others: the gradient from the output's other readers, which
    is added.
    """
    dx, none = jax.ShapeDtypeStruct(raw.shape, dy.dtype), jnp.zeros((0, 0, 0, 0), dy.dtype)
    # A missing array is passed as an empty one, since a handler takes the same arguments at every call.
    arrays = [norm, raw, *(none if array is None else array for array in (active, others))]
    dx, sums = _call("fer_jax_conv_input_gradient", (dx, _sums_of(dx, True)), dy, kernel, *arrays, stride, pad)
    return dx, sums / (raw.size // raw.shape[-1])


def kernel_gradient(x, dy, shape: tuple[int, ...], stride: int, pad: int, *, norm=None):
    """Returns the gradient with respect to the kernel, float32 of the given shape."""
    dkernel = jax.ShapeDtypeStruct(shape, jnp.float32)
    return _call("fer_jax_conv_kernel_gradient", dkernel, x, dy, _or_none(norm), stride, pad)


def pack(kernel):
    """Returns a kernel [size, size, in, out] in the form that `activate` takes, float32 [number of words]."""
    size, _, channels, out = kernel.shape
    # A block has 64 columns at most, and half-empty words are counted as whole ones.
    words = size * size * -(-channels * kernel.dtype.itemsize // 4) * -(-out // 64) * 64
    packed = jax.ShapeDtypeStruct((words,), jnp.float32)
    return jax.ffi.ffi_call(f"fer_jax_conv_pack_{kernel.dtype}", packed)(kernel)


def activate(x, packed, bias, shortcut, *, size: int, stride: int, relu: bool):
    """Returns a trained network's convolution with its bias, its shortcut, if any, and a ReLU if `relu`, in x's dtype.

    It can't be differentiated.

    x: [batch, height, width, in]. packed: the result of `pack` for a kernel of x's dtype. size: size of the window; x
    is padded by half of it. bias: float32 [out]. shortcut: has the result's shape and dtype, or is None.
    """
    pad = size // 2
    places = [(length + 2 * pad - size) // stride + 1 for length in x.shape[1:3]]
    y = jax.ShapeDtypeStruct((x.shape[0], *places, bias.shape[0]), x.dtype)
    shortcut = jnp.zeros((0, 0, 0, 0), x.dtype) if shortcut is None else shortcut
    sizes = {"size": np.int64(size), "stride": np.int64(stride), "pad": np.int64(pad)}
    return jax.ffi.ffi_call(f"fer_jax_conv_activate_{x.dtype}", y)(x, packed, bias, shortcut, **sizes, relu=relu)


def _forward(x, kernel, stride, pad):
    # XLA rounds the kernel: for rounding in the native code it would copy it first, since the step updates it in place.
    rounded = kernel.astype(x.dtype)
    return forward(x, rounded, stride, pad)[0], (x, rounded)


def _backward(stride, pad, residuals, dy):
    x, kernel = residuals
    # If dx is unused, as in a network's first convolution, XLA leaves the call out.
    return input_gradient(dy, kernel, x.shape, stride, pad), kernel_gradient(x, dy, kernel.shape, stride, pad)


convolve.defvjp(_forward, _backward)


def _or_none(norm):
    return jnp.zeros((0, 0), jnp.float32) if norm is None else norm


def _sums_of(array, are_wanted: bool):
    return jax.ShapeDtypeStruct((2 * are_wanted, array.shape[-1]), jnp.float32)


def _call(name: str, result, a, *others):
    *others, stride, pad = others
    # The handlers expect attributes of the type int64.
    return jax.ffi.ffi_call(f"{name}_{a.dtype}", result)(a, *others, stride=np.int64(stride), pad=np.int64(pad))
