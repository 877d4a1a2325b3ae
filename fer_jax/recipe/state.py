"""TrainState, and the first one of a run. Pure."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
    """Everything a training step changes.

    step: int32 [], steps taken so far. params, batch_stats: float32, as the model makes them.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


def create(model: nn.Module, optimizer: optax.GradientTransformation, *, seed: int, image_shape) -> TrainState:
    """Returns the state before the first step, with weights drawn from `seed`."""
    # Weights and augmentation draw from different keys of the same seed: 0 here, 1 in images.py.
    key = jax.random.fold_in(jax.random.key(seed), 0)
    variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
    )


def num_parameters(params) -> int:
    """Returns the number of trainable values."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
