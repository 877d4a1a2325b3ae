"""TrainState, its creation and its moving average. Pure."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from fer_jax.recipe.keys import Stream


class TrainState(flax.struct.PyTreeNode):
    """Everything a training step changes.

    step: int32 [], steps taken so far. params, batch_stats: float32, as the model creates them. ema: {'params',
    'batch_stats'}, their moving average over the steps, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """The network's current variables, not their moving average."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_shape,
    initial: Mapping[str, Any] | None = None,
    has_ema: bool = False,
) -> TrainState:
    """Returns the state before the first step, with weights drawn from `seed`.

    model: a ResNet. image_shape: shape of its input. initial: {'params', 'batch_stats'} of the layers that start with
    these values instead; the optimizer's state is always new.
    """
    key = jax.random.fold_in(jax.random.key(seed), Stream.WEIGHTS)
    # How the network is computed changes no weight. Initialisation uses XLA's own convolutions, whose FLOPs can be
    # counted, and no rematerialised blocks, whose weights are available only after computing the whole block.
    plain = model.clone(remat=False, conv_fn=lax.conv_general_dilated, axis_name=None)
    variables = plain.init(key, jnp.zeros((1, *image_shape)), train=False)
    # Set before the optimizer is initialised, so that any copy of the weights in its state starts from these values.
    if initial is not None:
        variables = {kind: {**layers, **initial.get(kind, {})} for kind, layers in variables.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        ema={key: variables[key] for key in ("params", "batch_stats")} if has_ema else None,
    )


def ema_decay(half_life: float | None, steps_per_epoch: int) -> float | None:
    """Returns the share of the moving average that a step keeps; half_life: in epochs, or None for no average."""
    return None if half_life is None else 0.5 ** (1 / (half_life * steps_per_epoch))


def move_average(ema, variables, *, decay: float, step):
    """Returns the moving average after a step; step: int32 [], the number of the step that was taken."""
    # At first the average covers only as many steps as were taken, so that the random initial weights don't dominate.
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda average, value: average + (1 - decay) * (value - average), ema, variables)


def num_parameters(params) -> int:
    """Returns the number of trainable values."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
