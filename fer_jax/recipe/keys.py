"""The keys of a step's random draws: a function of seed, step and the example's position. Pure."""

import enum

import jax
import jax.numpy as jnp
from jax import lax


class Stream(enum.IntEnum):
    """What a key is for. The numbers are part of what makes a run repeat: they never change."""

    WEIGHTS = 0
    AUGMENTATION = 1
    NETWORK = 2  # dropout and stochastic depth
    MIXING = 3
    FIRST_FLIP = 4  # the direction in which an image that flips every other epoch begins


def step_key(seed: int, stream: Stream, step):
    """Returns the key of a step, the same on every device; step: int32 []."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def positions(num_examples: int, axis_name: str):
    """Returns the positions in the global batch of a device's examples, int32 [num_examples]."""
    # A device's part of the batch is contiguous (parallel.shard_batch).
    return lax.axis_index(axis_name) * num_examples + jnp.arange(num_examples)


def example_keys(seed: int, stream: Stream, step, num_examples: int, axis_name: str):
    """Returns a key for each of a device's examples.

    The key is made of the example's position in the global batch, so that an example is treated alike on any number of
    devices.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key(seed, stream, step), positions(num_examples, axis_name))
