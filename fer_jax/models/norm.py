"""Batch normalisation with the shortcut and the ReLU that follow it, and a gradient that keeps fewer activations. Pure.

JAX's own gradient of batch normalisation keeps the centred input in float32 and the input of the ReLU. The gradient
here (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167, section 3) keeps the input in its original dtype, and the
output, which the next convolution keeps anyway.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fer_jax.native import norm as native


class Pending(NamedTuple):
    """Batch normalisation with ReLU that is left to its reader: max(0, (raw - mean) * rstd * scale + bias).

    The reader's gradient includes the normalisation's (`models.conv_norm`). raw: [batch, height, width, channels].
    """

    raw: Any
    scale: Any
    bias: Any
    mean: Any
    rstd: Any


class Activation(NamedTuple):
    """The result of batch norm with ReLU, [batch, height, width, channels], whose readers prepare its gradient.

    A reader's gradient with respect to `value` is zero where `value` is not positive. Its gradient with respect to
    `means`, which are zeros, is the `native.norm.gradient_means` of the former. Both are summed over the readers. raw:
    the input of the normalisation.
    """

    value: Any
    means: Any
    raw: Any
    mean: Any


class BatchNorm(nn.Module):
    """Normalises over the batch and the image, adds the shortcut, if any, and applies a ReLU if `relu`.

    Returns an array, or a Pending or Activation if that is `output`: both require training and a ReLU, and Pending
    takes no shortcut. moments: the means of x and of its squares, float32 [2, channels], if they are known.

    Parameters scale and bias and running statistics mean and var are float32 [channels], as in `flax.linen.BatchNorm`.

    Attributes:
      momentum: the share of the running statistics that a training step keeps.
      epsilon: added to the variance.
      dtype: of the input and the output; statistics are computed in float32.
      axis_name: the mapped axis over which statistics are also averaged, or None.
      native: whether the native code, which must have been loaded, sums over the pixels.
    """

    use_running_average: bool
    momentum: float
    epsilon: float
    dtype: Any
    axis_name: str | None = None
    native: bool = False
    scale_init: Callable = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x, *, relu: bool, shortcut=None, moments=None, output: type = jax.Array):
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", nn.initializers.zeros_init(), shape)
        x = x.astype(self.dtype)
        if self.use_running_average:
            return _apply(x, scale, bias, shortcut, mean.value, lax.rsqrt(var.value + self.epsilon), relu)
        axis_name = None if self.is_initializing() else self.axis_name
        # No gradient flows back to the moments: the norm's gradient with respect to its input includes theirs.
        if output is Pending:
            batch_mean, batch_var, rstd = _statistics(lax.stop_gradient(moments), self.epsilon, axis_name)
            y = Pending(x, scale, bias, batch_mean, rstd)
        elif output is Activation:
            arguments = x, lax.stop_gradient(moments), scale, bias, shortcut
            y, means, batch_mean, batch_var = _activate(*arguments, self.epsilon, axis_name)
            y = Activation(y, means, x, batch_mean)
        else:
            arguments = x, moments, scale, bias, shortcut
            y, batch_mean, batch_var = _normalize(*arguments, relu, self.epsilon, axis_name, self.native)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y


def _apply(x, scale, bias, shortcut, mean, rstd, relu: bool):
    """Returns x normalised and scaled, with shortcut and ReLU, in x's dtype, computed in float32."""
    # Scale, bias and statistics are combined per channel, which leaves one multiplication and one addition per value.
    factor = scale * rstd
    y = x.astype(jnp.float32) * factor + (bias - mean * factor)
    if shortcut is not None:
        y += shortcut
    return (jnp.maximum(y, 0) if relu else y).astype(x.dtype)


def _means(*values):
    """Returns each value's mean over all axes but the channels, float32 [len(values), channels]."""
    return jnp.stack([jnp.mean(value, axis=range(value.ndim - 1)) for value in values])


def _statistics(moments, epsilon: float, axis_name: str | None):
    """Returns mean, (biased) variance and rsqrt(variance + epsilon) over all devices; moments: those of this device."""
    mean, mean_of_squares = lax.pmean(moments, axis_name) if axis_name else moments
    # The difference of two rounded numbers may fall below zero.
    var = jnp.maximum(mean_of_squares - mean * mean, 0)
    return mean, var, lax.rsqrt(var + epsilon)


def gradients(dy, x, scale, mean, rstd, own, axis_name: str | None):
    """Returns the gradients with respect to x, scale and bias, of which the last two are this device's share.

    dy: the gradient with respect to the normalised and scaled x, before a ReLU. own: this device's means of dy and of
    dy times the normalised x.
    """
    wide, normalized = dy.astype(jnp.float32), (x.astype(jnp.float32) - mean) * rstd
    # The parameters' gradients are summed over this device alone, since the step adds up the devices' gradients. The
    # input's gradient passes through the statistics, which are those of all devices.
    bias_mean, scale_mean = lax.pmean(own, axis_name) if axis_name else own
    dx = scale * rstd * (wide - bias_mean - normalized * scale_mean)
    dbias, dscale = own * (x.size // x.shape[-1])
    return dx.astype(x.dtype), dscale, dbias


def with_normalized(means, rstd):
    """Returns the argument `own` of `gradients`, from the native code's means of dy and of dy * (x - mean)."""
    # All pixels of a channel share the factor rstd, so it can be applied to the means.
    return means * jnp.stack([jnp.ones_like(rstd), rstd])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _normalize(x, moments, scale, bias, shortcut, relu, epsilon, axis_name, is_native):
    """Returns y and the batch's mean and (biased) variance, which carry no gradient."""
    return _forward(x, moments, scale, bias, shortcut, relu, epsilon, axis_name, is_native)[0]


def _forward(x, moments, scale, bias, shortcut, relu, epsilon, axis_name, is_native):
    if moments is None and is_native:
        # XLA:CPU would write x to memory in float32 to sum it.
        moments = native.moments(x)
    elif moments is None:
        wide = x.astype(jnp.float32)
        moments = _means(wide, wide * wide)
    mean, var, rstd = _statistics(moments, epsilon, axis_name)
    y = _apply(x, scale, bias, shortcut, mean, rstd, relu)
    return (y, mean, var), (x, scale, mean, rstd, y if relu else None, shortcut is not None)


def _backward(relu, epsilon, axis_name, is_native, residuals, cotangents):
    x, scale, mean, rstd, y, has_shortcut = residuals
    dy, _, _ = cotangents
    if is_native:
        own = with_normalized(native.gradient_means(dy, x, mean, y), rstd)
    if relu:
        dy = jnp.where(y > 0, dy, 0)
    if not is_native:
        wide = dy.astype(jnp.float32)
        own = _means(wide, wide * ((x.astype(jnp.float32) - mean) * rstd))
    dx, dscale, dbias = gradients(dy, x, scale, mean, rstd, own, axis_name)
    return dx, None, dscale, dbias, dy if has_shortcut else None


_normalize.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _activate(x, moments, scale, bias, shortcut, epsilon, axis_name):
    """Returns an Activation's value and means, and the batch's mean and variance, which carry no gradient."""
    return _activate_forward(x, moments, scale, bias, shortcut, epsilon, axis_name)[0]


def _activate_forward(x, moments, scale, bias, shortcut, epsilon, axis_name):
    mean, var, rstd = _statistics(moments, epsilon, axis_name)
    y = _apply(x, scale, bias, shortcut, mean, rstd, relu=True)
    # The zeros are never read; a reader returns the two means as the gradient with respect to them.
    return (y, jnp.zeros_like(moments), mean, var), (x, scale, mean, rstd, shortcut is not None)


def _activate_backward(epsilon, axis_name, residuals, cotangents):
    x, scale, mean, rstd, has_shortcut = residuals
    dy, means, _, _ = cotangents
    dx, dscale, dbias = gradients(dy, x, scale, mean, rstd, with_normalized(means, rstd), axis_name)
    return dx, None, dscale, dbias, dy if has_shortcut else None


_activate.defvjp(_activate_forward, _activate_backward)


@jax.custom_vjp
def as_array(activation: Activation):
    """Returns the value of an Activation, for a reader that isn't a convolution."""
    return activation.value


def _as_array_backward(activation, dy):
    means = native.gradient_means(dy, activation.raw, activation.mean, activation.value)
    return (Activation(jnp.where(activation.value > 0, dy, 0), means, None, None),)


as_array.defvjp(lambda activation: (activation.value, activation), _as_array_backward)
