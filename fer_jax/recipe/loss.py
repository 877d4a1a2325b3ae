"""The training loss: targets made from labels, and the cross-entropy against them. Pure."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def make_targets(labels, num_classes: int, *, label_smoothing: float, targets=None):
    """Returns a distribution over the classes for each label, float32 [batch, classes]; labels: int32 [batch].

    label_smoothing: the share of each target that is spread evenly over all classes (Szegedy et al. 2016,
    https://arxiv.org/abs/1512.00567, section 7). targets: float32 [batch, classes], distributions that
    replace the labels.
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes) if targets is None else targets, label_smoothing)


def cross_entropy(logits, targets):
    """Returns the cross-entropy of each example in nats, float32 [batch]; both arguments: float32 [batch, classes]."""
    return optax.softmax_cross_entropy(logits, targets)


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns a weight for each class, float32 [classes], with which all classes count equally.

    labels: those of the training split, over which the mean weight is 1. A class without examples has weight 0.
    """
    counts = np.bincount(labels, minlength=num_classes)
    return np.where(counts, len(labels) / np.maximum(counts, 1) / np.count_nonzero(counts), 0).astype(np.float32)


def weigh(targets, class_weights):
    """Returns new distributions and a weight for each example, float32 [batch], that apply the class weights.

    An example's weight times the cross-entropy against its new distribution equals the cross-entropy against `targets`
    with each class's term multiplied by the class's weight. The distribution of a target with only one class doesn't
    change. targets: float32 [batch, classes]; class_weights: float32 [classes].
    """
    weighted = targets * jnp.asarray(class_weights)
    total = weighted.sum(axis=-1)
    # If none of a target's classes has examples, its total is 0 and the distribution can't be normalised.
    return jnp.where(total[:, None] > 0, weighted / jnp.where(total > 0, total, 1)[:, None], targets), total


def describe_targets(config: Mapping[str, Any]) -> str:
    """Describes the targets of a config's training loss, for readers who compare it with the validation loss."""
    parts = [f"smoothed by {config['loss']['label_smoothing']}"] if config["loss"]["label_smoothing"] else []
    parts += ["mixed"] if config["mix"]["mixup"] or config["mix"]["cutmix"] else []
    parts += ["weighted by class"] if config["loss"]["class_weights"] != "none" else []
    against = "votes" if config["dataset"]["ferplus_task"] == "soft" else "labels"
    against += " and votes" if config["dataset"]["ferplus_target_weight"] else ""
    return f"{against} {', '.join(parts)}".strip()
