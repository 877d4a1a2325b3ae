"""What a training step minimises: targets made of labels, and the cross-entropy against them. Pure."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def make_targets(labels, num_classes: int, *, label_smoothing: float, targets=None):
    """Returns a distribution over the classes for each label, float32 [batch, classes]; labels: int32 [batch].

    label_smoothing: the share of each target that is spread evenly over all classes (Szegedy et al. 2016,
    https://arxiv.org/abs/1512.00567, section 7). targets: float32 [batch, classes], distributions in place of the
    labels.
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes) if targets is None else targets, label_smoothing)


def cross_entropy(logits, targets):
    """Returns the cross-entropy of each example in nats, float32 [batch]; both arguments: float32 [batch, classes]."""
    return optax.softmax_cross_entropy(logits, targets)


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns a weight for each class, float32 [classes], by which every class counts alike; their mean is 1.

    labels: of the training split. A class without examples has weight 0.
    """
    counts = np.bincount(labels, minlength=num_classes)
    return np.where(counts, len(labels) / np.maximum(counts, 1) / np.count_nonzero(counts), 0).astype(np.float32)


def weigh(targets, class_weights):
    """Returns distributions and each example's weight, float32 [batch], that weigh every class of a target.

    The weight times the cross-entropy against the new distribution is that against `targets` with each class's part
    times its weight. Of one class the distribution stays as it is. targets: float32 [batch, classes]; class_weights:
    float32 [classes].
    """
    weighted = targets * jnp.asarray(class_weights)
    total = weighted.sum(axis=-1)
    # Nothing is left of a target whose classes have no examples.
    return jnp.where(total[:, None] > 0, weighted / jnp.where(total > 0, total, 1)[:, None], targets), total


def describe_targets(config: Mapping[str, Any]) -> str:
    """Returns what a config's training loss is against, for who compares it with the validation loss."""
    parts = [f"smoothed by {config['loss']['label_smoothing']}"] if config["loss"]["label_smoothing"] else []
    parts += ["mixed"] if config["mix"]["mixup"] or config["mix"]["cutmix"] else []
    parts += ["weighted by class"] if config["loss"]["class_weights"] != "none" else []
    against = "votes" if config["dataset"]["ferplus_task"] == "soft" else "labels"
    against += " and votes" if config["dataset"]["ferplus_target_weight"] else ""
    return f"{against} {', '.join(parts)}".strip()
