"""What a training step minimises: targets made of labels, and the cross-entropy against them. Pure."""

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


def weigh(losses, labels, class_weights):
    """Returns each example's loss, float32 [batch], times the weight of its label; class_weights: None for 1."""
    return losses if class_weights is None else losses * jnp.asarray(class_weights)[labels]
