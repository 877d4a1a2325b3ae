"""PRNG keys for a step's random draws, made from the seed, the step and an example's position. Pure."""

import enum

import jax
import jax.numpy as jnp
from jax import lax


class Stream(enum.IntEnum):
    """The purpose of a key. The numbers must never change, since a run can only be repeated with the same ones."""

    WEIGHTS = 0
    AUGMENTATION = 1
    NETWORK = 2  # dropout and stochastic depth
    MIXING = 3
    FIRST_FLIP = 4  # whether an image that is flipped every other epoch begins flipped


def step_key(seed: int, stream: Stream, step):
    """Returns the key of a step, the same on every device; step: int32 []."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def positions(num_examples: int, axis_name: str):
    """Returns the positions of a device's examples in the global batch, int32 [num_examples]."""
    # A device's part of the batch is contiguous (parallel.shard_batch).
    return lax.axis_index(axis_name) * num_examples + jnp.arange(num_examples)


def example_keys(seed: int, stream: Stream, step, num_examples: int, axis_name: str):
    """Returns a key for each of a device's examples.

    A key depends on the example's position in the global batch, so that an example gets the same draws on any number of
    devices.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key(seed, stream, step), positions(num_examples, axis_name))
