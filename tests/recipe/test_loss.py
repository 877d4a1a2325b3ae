"""Targets and cross-entropy, compared with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import resnet50
from fer_jax.recipe.loss import balanced_weights, cross_entropy, describe_targets, make_targets, weigh

LABELS = np.array([2, 0, 3, 3], np.int32)


def test_targets_without_smoothing_are_one_at_the_label():
    targets = make_targets(LABELS, 4, label_smoothing=0.0)
    assert targets.dtype == jnp.float32
    np.testing.assert_array_equal(targets, [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]])


@pytest.mark.parametrize("num_classes", [4, 8])
def test_smoothing_spreads_its_share_over_all_classes(num_classes):
    targets = make_targets(LABELS, num_classes, label_smoothing=0.2)
    expected = np.full((4, num_classes), 0.2 / num_classes)
    expected[np.arange(4), LABELS] += 0.8
    assert targets.dtype == jnp.float32
    np.testing.assert_allclose(targets, expected, rtol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)


def test_cross_entropy_of_each_example_equals_numpy():
    rng = np.random.default_rng(0)
    logits, weights = rng.normal(scale=5, size=(6, 7)), rng.uniform(size=(6, 7))
    targets = weights / weights.sum(axis=1, keepdims=True)  # any distribution will do
    expected = -(targets * (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))).sum(axis=1)
    losses = cross_entropy(jnp.float32(logits), jnp.float32(targets))
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_the_gradient_to_the_logits_is_probability_minus_target():
    logits = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    targets = make_targets(LABELS, 4, label_smoothing=0.1)
    gradient = jax.grad(lambda logits: cross_entropy(logits, targets).sum())(logits)
    np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - targets, atol=1e-6)


def test_large_logits_stay_finite():
    losses = cross_entropy(jnp.float32([[1e4, 0, -1e4]]), make_targets(np.array([1], np.int32), 3, label_smoothing=0.0))
    np.testing.assert_allclose(losses, [1e4])


def test_targets_in_place_of_labels_are_smoothed_as_labels_are():
    given = np.float32([[0.2, 0.8, 0, 0], [0.5, 0.1, 0.1, 0.3]])
    targets = make_targets(LABELS[:2], 4, label_smoothing=0.2, targets=given)
    np.testing.assert_allclose(targets, 0.8 * given + 0.05, rtol=1e-6)


def test_balanced_weights_let_every_class_count_alike():
    labels = np.array([0] * 6 + [1] * 3 + [3])
    class_weights = balanced_weights(labels, 4)
    np.testing.assert_allclose(class_weights, [10 / 18, 10 / 9, 0, 10 / 3], rtol=1e-6)
    one_hot = np.eye(4, dtype=np.float32)[labels]
    targets, weights = weigh(one_hot, class_weights)
    np.testing.assert_array_equal(targets, one_hot)
    # The mean weight of an example is 1, and each class that occurs has the same sum of weights.
    assert np.mean(weights) == pytest.approx(1)
    np.testing.assert_allclose([weights[labels == label].sum() for label in (0, 1, 3)], 10 / 3, rtol=1e-6)


def test_each_class_of_a_mixed_target_has_its_own_weight():
    class_weights = np.float32([0.5, 4, 0, 1])
    mixed = np.float32([[0.25, 0.75, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 1, 0]])
    logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    targets, weights = weigh(mixed, class_weights)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -(class_weights * mixed * log_probabilities).sum(axis=1)
    np.testing.assert_allclose(weights * cross_entropy(logits, targets), expected, rtol=1e-5)
    np.testing.assert_allclose(np.sum(targets, axis=1), 1, rtol=1e-6)
    assert expected[2] == 0  # a class of weight 0 is left out, not infinite


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "labels"),
        ({"loss.label_smoothing": 0.1}, "labels smoothed by 0.1"),
        ({"dataset.ferplus_task": "majority"}, "labels"),
        ({"dataset.ferplus_task": "soft"}, "votes"),
        ({"dataset.ferplus_target_weight": 0.3, "mix.cutmix": 1.0}, "labels and votes mixed"),
        ({"loss.class_weights": "balanced", "loss.label_smoothing": 0.2}, "labels smoothed by 0.2, weighted by class"),
    ],
)
def test_what_the_training_loss_is_against_is_said(changes, said):
    config = resnet50.get_config()
    config.update_from_flattened_dict(changes)
    assert describe_targets(config) == said
