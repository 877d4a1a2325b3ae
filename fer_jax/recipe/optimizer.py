"""Optax chains and learning-rate schedules from a config. Pure."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


def make_schedule(optimizer_config: Mapping[str, Any], *, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step: a linear warm-up from zero, then constant or cosine.

    The cosine ends at zero after `num_epochs`.
    """
    peak = optimizer_config["learning_rate"]
    warmup = round(optimizer_config["warmup_epochs"] * steps_per_epoch)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, max(1, num_epochs * steps_per_epoch - warmup)),
    }[optimizer_config["schedule"]]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def make_optimizer(optimizer_config: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns Adam (Kingma & Ba 2015), with decoupled weight decay and clipping of the global norm where asked for."""
    parts = []
    if optimizer_config["clip_norm"] is not None:
        parts.append(optax.clip_by_global_norm(optimizer_config["clip_norm"]))
    # Clipped before Adam, which would otherwise have divided a large gradient by its own size already.
    parts.append(optax.scale_by_adam())
    # After Adam: decay is not divided by the gradient's size (AdamW, Loshchilov & Hutter 2019).
    if optimizer_config["weight_decay"]:
        parts.append(optax.add_decayed_weights(optimizer_config["weight_decay"], mask=is_kernel))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def skip_update(is_finite, updated, previous):
    """Returns the optimizer's state `updated`, or `previous` where not `is_finite`; is_finite: bool [].

    The schedule's counter advances all the same, since it numbers the training steps. If it fell behind them, the rate
    that is applied would not be the one that is logged, nor reach its end at the end of training.
    """

    def choose(new, old):
        # A counter, not a moment.
        if isinstance(new, optax.ScaleByScheduleState):
            return new
        return jnp.where(is_finite, new, old)

    return jax.tree.map(choose, updated, previous, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState))


def is_kernel(params):
    """Marks the leaves that weight decay is for: kernels, not biases and not the scales of batch norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
