"""A convolution and the batch norm after it as one layer, parts of which the native code fuses. Pure.

In native training, a norm between two convolutions needs one pass over memory of its own instead of four. The previous
convolution sums the norm's statistics while it writes its result. The next convolution normalises its input as it reads
it (Pending), or reads an activation that was written because a shortcut needs it too (Activation). As its dx is
written, the ReLU's mask is applied, the shortcut's gradient is added, and the sums for the norm's gradient are made.
The native code also computes the folded layers of a trained network (`models.fold`). Everywhere else a layer is a
convolution followed by a norm.
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
    """A convolution, a batch norm, the sum with the shortcut, if any, and a ReLU if `relu`.

    Returns (y, x). y is an array or, if the layer is fused, of the type `output` (see `BatchNorm`). x is the input as
    an array, for its other readers: if they read it from here, their gradients are added as dx is written.

    Attributes:
      conv, norm: functions that make the two layers; conv takes (features, window, stride).
      names: the names of the two layers' variables in the scope that this layer shares.
      fused: whether the native code computes parts of the norm with the convolution; only for training.
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
        # The native code does not support larger windows.
        if not self.fused or self.window > native.MAX_SIZE:
            return norm(conv(name=self.names[0])(x), relu=relu, shortcut=shortcut), x
        # Flax makes only the kernel: its layer has no second result, and takes nothing but arrays.
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
    """The kernel of a convolution, the same parameter as in `flax.linen.Conv`."""

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
    # The rounded kernel is kept for the gradient, so that it is rounded only once a step.
    rounded = kernel.astype(value.dtype)
    return (*native.forward(value, rounded, stride, pad, with_moments=True), value), (x, rounded)


def _convolve_backward(stride, pad, residuals, cotangents):
    x, kernel = residuals
    dy, _, others = cotangents
    if not isinstance(x, Activation):
        # No norm precedes this layer: dx is the gradient of the images, which is unused, or that of a pooling.
        dx = native.input_gradient(dy, kernel, x.shape, stride, pad)
        return dx + others, native.kernel_gradient(x, dy, kernel.shape, stride, pad)
    norm = jnp.stack([x.mean] * 3)  # factor and shift aren't read: the mask comes from x.value
    taken = {"active": x.value, "others": others}
    dx, means = native.normalized_input_gradient(dy, kernel, x.raw, norm, stride, pad, **taken)
    return Activation(dx, means, None, None), native.kernel_gradient(x.value, dy, kernel.shape, stride, pad)


_convolve.defvjp(_convolve_forward, _convolve_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _normalize_and_convolve(x: Pending, kernel, stride: int, pad: int, axis_name: str | None):
    """Returns the convolution of the normalised x, and its moments, which carry no gradient."""
    return _normalize_and_convolve_forward(x, kernel, stride, pad, axis_name)[0]


def _normalize_and_convolve_forward(x, kernel, stride, pad, axis_name):
    # Applied as in `models.norm`. The bits are the same each time, so that forward, mask and dW see the same zeros.
    rounded, factor = kernel.astype(x.raw.dtype), x.scale * x.rstd
    norm = jnp.stack([factor, x.bias - x.mean * factor, x.mean])
    return native.forward(x.raw, rounded, stride, pad, norm=norm, with_moments=True), (x, rounded, norm)


def _normalize_and_convolve_backward(stride, pad, axis_name, residuals, cotangents):
    x, kernel, norm = residuals
    dy, _ = cotangents
    dx, means = native.normalized_input_gradient(dy, kernel, x.raw, norm, stride, pad)
    own = with_normalized(means, x.rstd)
    # The one pass that remains: its result is written, since dx and dW of the previous convolution both read it.
    draw, dscale, dbias = gradients(dx, x.raw, x.scale, x.mean, x.rstd, own, axis_name)
    # The mean and the deviation are functions of raw, so their gradient is part of draw.
    dkernel = native.kernel_gradient(x.raw, dy, kernel.shape, stride, pad, norm=norm)
    return Pending(draw, dscale, dbias, None, None), dkernel


_normalize_and_convolve.defvjp(_normalize_and_convolve_forward, _normalize_and_convolve_backward)


def array_of(x):
    """Returns a ConvNorm's output, which must not be Pending, as an array."""
    return as_array(x) if isinstance(x, Activation) else x
