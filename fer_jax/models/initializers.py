"""The initializer of the convolution kernels. Pure."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def he_normal_fan_out(key, shape: tuple[int, ...], dtype=jnp.float32):
    """Returns a kernel [height, width, in, out] of normal values with a variance of 2 / (height * width * out).

    The values are the same as from variance_scaling(2.0, "fan_out", "normal") in a compiled program. See He et al.
    2015, https://arxiv.org/abs/1502.01852.
    """
    size = math.prod(shape)
    deviation = np.sqrt(np.array(2.0 / (math.prod(shape[:-2]) * shape[-1]), dtype))
    # The two factors are multiplied first, as XLA does.
    factor = np.array(np.sqrt(2), dtype) * deviation
    # Sizes are powers of 4: compiling for each of the 13 sizes of ResNet-50's 53 kernels takes longer than more draws.
    drawn = _draw(key, factor, max(1024, 4 ** math.ceil(math.log(size, 4))))
    # A value depends only on the key and its own position.
    return drawn[:size].reshape(shape)


@functools.partial(jax.jit, static_argnames="size")
def _draw(key, factor, size: int):
    # As in jax.random.normal, the lower bound is above -1, since erf_inv(-1) is not finite.
    uniform = jax.random.uniform(key, (size,), factor.dtype, np.nextafter(np.array(-1, factor.dtype), 0), 1.0)
    return jax.lax.erf_inv(uniform) * factor
