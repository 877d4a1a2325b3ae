"""What a training step minimises: targets made of labels, and the cross-entropy against them. Pure."""

import jax
import optax


def make_targets(labels, num_classes: int, *, label_smoothing: float):
    """Returns a distribution over the classes for each label, float32 [batch, classes]; labels: int32 [batch].

    label_smoothing: the share of each target that is spread evenly over all classes (Szegedy et al. 2016,
    https://arxiv.org/abs/1512.00567, section 7).
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)


def cross_entropy(logits, targets):
    """Returns the cross-entropy of each example in nats, float32 [batch]; both arguments: float32 [batch, classes]."""
    return optax.softmax_cross_entropy(logits, targets)
