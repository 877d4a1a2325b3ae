"""Optax chains and learning-rate schedules from a config. Pure."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


def make_schedule(optimizer_config: Mapping[str, Any], *, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step: a linear warm-up from zero, then the configured schedule.

    The schedule is constant, or a cosine or linear decay that ends at zero after `num_epochs`. A linear decay after a
    warm-up is the triangle of the one-cycle policy (Smith & Topin 2018, https://arxiv.org/abs/1708.07120).
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
    """Returns the optimizer of a `config.optimizer`, with clipping of the global norm if configured.

    adam: Adam (Kingma & Ba 2015) with decoupled weight decay (AdamW, Loshchilov & Hutter 2019). sgd: SGD with Nesterov
    momentum 0.9 (Sutskever et al. 2013); its weight decay is L2 regularisation, added to the gradient.
    """
    clip_norm, weight_decay = optimizer_config["clip_norm"], optimizer_config["weight_decay"]
    # Clipping comes first: after Adam a large gradient would already be divided by its own size.
    parts = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    decay = [optax.add_decayed_weights(weight_decay, mask=is_kernel)] if weight_decay else []
    if optimizer_config["name"] == "adam":
        # The weight decay comes after Adam, so that it is not divided by the gradient's size.
        parts += [optax.scale_by_adam(), *decay]
    else:
        # The weight decay comes before the momentum, as a part of the gradient, as in every recipe that gives a value.
        parts += [*decay, optax.trace(decay=0.9, nesterov=True)]
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def skip_update(is_finite, updated, previous):
    """Returns the optimizer state `updated` if `is_finite`, otherwise `previous`; is_finite: bool [].

    The schedule's counter advances in both cases, since it numbers the training steps. If it fell behind them, the
    applied learning rate would differ from the logged one and would not reach its final value by the end of training.
    """

    def choose(new, old):
        # The schedule's state is a counter, not a moment of the gradient.
        if isinstance(new, optax.ScaleByScheduleState):
            return new
        return jnp.where(is_finite, new, old)

    return jax.tree.map(choose, updated, previous, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState))


def is_kernel(params):
    """Marks the leaves to which weight decay applies: kernels, but not biases or the scales of batch norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
