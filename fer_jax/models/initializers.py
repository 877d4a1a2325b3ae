"""How kernels are drawn. Pure."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def he_normal_fan_out(key, shape: tuple[int, ...], dtype=jnp.float32):
    """Returns a convolution's kernel, [height, width, in, out]: normal, with a variance of 2 / (height * width * out).

    The values are those of variance_scaling(2.0, "fan_out", "normal") in a compiled program. He et al. 2015,
    https://arxiv.org/abs/1502.01852.
    """
    size = math.prod(shape)
    deviation = np.sqrt(np.array(2.0 / (math.prod(shape[:-2]) * shape[-1]), dtype))
    # XLA multiplies the two factors first.
    factor = np.array(np.sqrt(2), dtype) * deviation
    # Powers of 4: the 53 kernels of ResNet-50 have 13 sizes, and a program for each takes longer than more draws.
    drawn = _draw(key, factor, max(1024, 4 ** math.ceil(math.log(size, 4))))
    # A value depends on the key and its own position alone.
    return drawn[:size].reshape(shape)


@functools.partial(jax.jit, static_argnames="size")
def _draw(key, factor, size: int):
    # As in jax.random.normal: above -1, whose image is not finite.
    uniform = jax.random.uniform(key, (size,), factor.dtype, np.nextafter(np.array(-1, factor.dtype), 0), 1.0)
    return jax.lax.erf_inv(uniform) * factor
