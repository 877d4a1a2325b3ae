"""A convolution and the batch norm after it as one layer, of which the native code computes more than products. Pure.

Natively and in training a norm between two convolutions makes one pass over memory of its own instead of four. Its
statistics are summed as the convolution before it writes. The convolution after it normalises what it reads (Pending),
or reads what was written because a shortcut needs it too (Activation); and as that one's dx is written the ReLU's mask
is applied, the shortcut's gradient added, and the sums made that the norm's gradient takes. A trained network's layers
may be folded (`models.fold`), natively too. Everywhere else a layer is a convolution and then a norm.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fer_jax.models import fold
from fer_jax.models.norm import Activation, Pending, as_array, gradients, with_normalized
from fer_jax.native import conv as native


class ConvNorm(nn.Module):
    """A convolution, batch norm, the shortcut if any, and ReLU if `relu`.

    Returns (y, x): y is an array, or what `output` says where the layer is fused (`BatchNorm`). x: the input, as an
    array, for others that take it too: taken from here their gradients are added as dx is written.

    Attributes:
      conv, norm: make the layers; conv of (features, window, stride).
      names: of their variables, those of two layers in the scope that this layer shares.
      fused: whether the native code computes what it can of the norm with the convolution; for training alone.
    """

    features: int
    window: int
    stride: int
    conv: Callable
    norm: Callable
    names: tuple[str, str]
    fused: bool

    @nn.compact
    def __call__(self, x, *, relu: bool = True, shortcut=None, output: type = jax.Array):
        folded = self.get_variable(fold.COLLECTION, self.names[0])
        if folded is not None:
            options = {"size": self.window, "stride": self.stride, "relu": relu}
            return native.activate(x, folded["packed"], folded["bias"], shortcut, **options), x
        conv = functools.partial(self.conv, self.features, self.window, self.stride)
        norm = self.norm(name=self.names[1])
        # A larger window is beyond the native code.
        if not self.fused or self.window > native.MAX_SIZE:
            return norm(conv(name=self.names[0])(x), relu=relu, shortcut=shortcut), x
        # The kernel alone: Flax's layer has no second result, and would not take what isn't an array.
        channels = (x.raw if isinstance(x, Pending | Activation) else x).shape[-1]
        shape = self.window, self.window, channels, self.features
        kernel = _Kernel(shape, conv(parent=None).kernel_init, name=self.names[0])()
        pad = self.window // 2
        if isinstance(x, Pending):
            y, moments = _normalize_and_convolve(x, kernel, self.stride, pad, norm.axis_name)
        else:
            y, moments, x = _convolve(x, kernel, self.stride, pad)
        return norm(y, relu=relu, shortcut=shortcut, moments=moments, output=output), x


class _Kernel(nn.Module):
    """The kernel of a convolution, as `flax.linen.Conv` has it."""

    shape: tuple[int, ...]
    kernel_init: Callable

    @nn.compact
    def __call__(self):
        return self.param("kernel", self.kernel_init, self.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, stride: int, pad: int):
    """Returns the convolution, its moments, which carry no gradient, and x as an array; x: an array or Activation."""
    return _convolve_forward(x, kernel, stride, pad)[0]


def _convolve_forward(x, kernel, stride, pad):
    value = x.value if isinstance(x, Activation) else x
    # Kept for the gradient as it is computed with, so that it is rounded once a step.
    rounded = kernel.astype(value.dtype)
    return (*native.forward(value, rounded, stride, pad, with_moments=True), value), (x, rounded)


def _convolve_backward(stride, pad, residuals, cotangents):
    x, kernel = residuals
    dy, _, others = cotangents
    if not isinstance(x, Activation):
        # No norm is before this layer: the image's gradient, which nobody asks for, or that of a pooling.
        dx = native.input_gradient(dy, kernel, x.shape, stride, pad)
        return dx + others, native.kernel_gradient(x, dy, kernel.shape, stride, pad)
    norm = jnp.stack([x.mean] * 3)  # factor and shift aren't read: the mask is that of x.value
    taken = {"active": x.value, "others": others}
    dx, means = native.normalized_input_gradient(dy, kernel, x.raw, norm, stride, pad, **taken)
    return Activation(dx, means, None, None), native.kernel_gradient(x.value, dy, kernel.shape, stride, pad)


_convolve.defvjp(_convolve_forward, _convolve_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _normalize_and_convolve(x: Pending, kernel, stride: int, pad: int, axis_name: str | None):
    """Returns the convolution of the normalised x, and its moments, which carry no gradient."""
    return _normalize_and_convolve_forward(x, kernel, stride, pad, axis_name)[0]


def _normalize_and_convolve_forward(x, kernel, stride, pad, axis_name):
    # As `models.norm` applies it. The bits are the same each time: forward, mask and dW see the same zeros.
    rounded, factor = kernel.astype(x.raw.dtype), x.scale * x.rstd
    norm = jnp.stack([factor, x.bias - x.mean * factor, x.mean])
    return native.forward(x.raw, rounded, stride, pad, norm=norm, with_moments=True), (x, rounded, norm)


def _normalize_and_convolve_backward(stride, pad, axis_name, residuals, cotangents):
    x, kernel, norm = residuals
    dy, _ = cotangents
    dx, means = native.normalized_input_gradient(dy, kernel, x.raw, norm, stride, pad)
    own = with_normalized(means, x.rstd)
    # The one pass that is left; dx and dW of the convolution before read its result twice.
    draw, dscale, dbias = gradients(dx, x.raw, x.scale, x.mean, x.rstd, own, axis_name)
    # The mean and the deviation are raw's: their gradient is in draw.
    dkernel = native.kernel_gradient(x.raw, dy, kernel.shape, stride, pad, norm=norm)
    return Pending(draw, dscale, dbias, None, None), dkernel


_normalize_and_convolve.defvjp(_normalize_and_convolve_forward, _normalize_and_convolve_backward)


def array_of(x):
    """Returns the array that a ConvNorm's output stands for, which isn't Pending."""
    return as_array(x) if isinstance(x, Activation) else x
