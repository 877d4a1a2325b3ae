"""Batch normalisation with the shortcut and the ReLU that follow it, and a gradient that keeps fewer activations. Pure.

JAX's own gradient of batch normalisation keeps the centred input in float32 and the input of the ReLU. The gradient
here (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167, section 3) keeps the input in the dtype it came in, and
the output, which the next convolution keeps anyway.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fer_jax.native import norm as native


class BatchNorm(nn.Module):
    """Normalises over the batch and the image, adds the shortcut, if any, and applies ReLU if `relu`.

    Parameters scale and bias and running statistics mean and var are float32 [channels], as in `flax.linen.BatchNorm`.

    Attributes:
      momentum: the share of the running statistics that a training step keeps.
      epsilon: added to the variance.
      dtype: of the input and the output; statistics are computed in float32.
      axis_name: the mapped axis over which statistics are averaged too, or None.
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
    def __call__(self, x, *, relu: bool, shortcut=None):
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", nn.initializers.zeros_init(), shape)
        x = x.astype(self.dtype)
        if self.use_running_average:
            return _apply(x, scale, bias, shortcut, mean.value, lax.rsqrt(var.value + self.epsilon), relu)
        axis_name = None if self.is_initializing() else self.axis_name
        y, batch_mean, batch_var = _normalize(x, scale, bias, shortcut, relu, self.epsilon, axis_name, self.native)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y


def _apply(x, scale, bias, shortcut, mean, rstd, relu: bool):
    """Returns x normalised and scaled, with shortcut and ReLU, in x's dtype; it is computed in float32."""
    # Scale, bias and statistics are combined a channel, which leaves one multiplication and one addition a value.
    factor = scale * rstd
    y = x.astype(jnp.float32) * factor + (bias - mean * factor)
    if shortcut is not None:
        y += shortcut
    return (jnp.maximum(y, 0) if relu else y).astype(x.dtype)


def _means(*values):
    """Returns each value's mean over all but the channels, float32 [len(values), channels]."""
    return jnp.stack([jnp.mean(value, axis=range(value.ndim - 1)) for value in values])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _normalize(x, scale, bias, shortcut, relu, epsilon, axis_name, is_native):
    """Returns y and the batch's mean and (biased) variance, which carry no gradient."""
    return _forward(x, scale, bias, shortcut, relu, epsilon, axis_name, is_native)[0]


def _forward(x, scale, bias, shortcut, relu, epsilon, axis_name, is_native):
    if is_native:
        # XLA:CPU would write x to memory in float32 to sum it.
        moments = native.moments(x)
    else:
        wide = x.astype(jnp.float32)
        moments = _means(wide, wide * wide)
    mean, mean_of_squares = lax.pmean(moments, axis_name) if axis_name else moments
    # The difference of two rounded numbers may fall below zero.
    var = jnp.maximum(mean_of_squares - mean * mean, 0)
    rstd = lax.rsqrt(var + epsilon)
    y = _apply(x, scale, bias, shortcut, mean, rstd, relu)
    return (y, mean, var), (x, scale, mean, rstd, y if relu else None, shortcut is not None)


def _backward(relu, epsilon, axis_name, is_native, residuals, cotangents):
    x, scale, mean, rstd, y, has_shortcut = residuals
    dy, _, _ = cotangents
    # The parameters' gradients are summed over this device alone, since the step adds up the devices' gradients. The
    # input's gradient goes through the statistics, which are those of all devices.
    if is_native:
        # One factor rstd for all pixels of a channel.
        own = native.gradient_means(dy, x, mean, y) * jnp.stack([jnp.ones_like(rstd), rstd])
    if relu:
        dy = jnp.where(y > 0, dy, 0)
    wide, normalized = dy.astype(jnp.float32), (x.astype(jnp.float32) - mean) * rstd
    if not is_native:
        own = _means(wide, wide * normalized)
    bias_mean, scale_mean = lax.pmean(own, axis_name) if axis_name else own
    dx = scale * rstd * (wide - bias_mean - normalized * scale_mean)
    dbias, dscale = own * (x.size // x.shape[-1])
    return dx.astype(x.dtype), dscale, dbias, dy if has_shortcut else None


_normalize.defvjp(_forward, _backward)
