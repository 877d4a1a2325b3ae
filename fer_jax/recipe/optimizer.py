"""Optax chains and learning-rate schedules from a config. Pure."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


def make_schedule(optimizer_config: Mapping[str, Any], *, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step: a linear warm-up from zero, then what the schedule says.

    That is constant, or a cosine or a line that ends at zero after `num_epochs`. With the warm-up a line is the
    triangle of the one-cycle policy (Smith & Topin 2018, https://arxiv.org/abs/1708.07120).
    """
    peak = optimizer_config["learning_rate"]
    warmup = round(optimizer_config["warmup_epochs"] * steps_per_epoch)
    left = max(1, num_epochs * steps_per_epoch - warmup)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, left),
        "linear": optax.linear_schedule(peak, 0.0, left),
    }[optimizer_config["schedule"]]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def make_optimizer(optimizer_config: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimizer of a `config.optimizer`, with clipping of the global norm where asked for.

    adam: Adam (Kingma & Ba 2015), whose weight decay is decoupled (AdamW, Loshchilov & Hutter 2019). sgd: with Nesterov
    momentum 0.9 (Sutskever et al. 2013), whose weight decay is L2 regularisation, added to the gradient.
    """
    clip_norm, weight_decay = optimizer_config["clip_norm"], optimizer_config["weight_decay"]
    # Clipped first: Adam would have divided a large gradient by its own size already.
    parts = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    decay = [optax.add_decayed_weights(weight_decay, mask=is_kernel)] if weight_decay else []
    if optimizer_config["name"] == "adam":
        # Decay after Adam is not divided by the gradient's size.
        parts += [optax.scale_by_adam(), *decay]
    else:
        # Decay before the momentum is part of the gradient, as in every recipe that gives a value for it.
        parts += [*decay, optax.trace(decay=0.9, nesterov=True)]
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
