"""TrainState, and the first one of a run. Pure."""

from collections.abc import Mapping
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


def create(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_shape,
    initial: Mapping[str, Any] | None = None,
) -> TrainState:
    """Returns the state before the first step, with weights drawn from `seed`.

    initial: {'params', 'batch_stats'} of the layers that start with these values instead; the optimizer starts anew.
    """
    # Weights and augmentation draw from different keys of the same seed: 0 here, 1 in images.py.
    key = jax.random.fold_in(jax.random.key(seed), 0)
    variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
    # Before the optimizer: whatever it keeps of the weights begins with these.
    if initial is not None:
        variables = {kind: {**layers, **initial.get(kind, {})} for kind, layers in variables.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
    )


def num_parameters(params) -> int:
    """Returns the number of trainable values."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
