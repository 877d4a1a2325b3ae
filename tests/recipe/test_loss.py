"""Targets and cross-entropy, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.recipe.loss import balanced_weights, cross_entropy, make_targets, weigh

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
    weights = balanced_weights(labels, 4)
    np.testing.assert_allclose(weights, [10 / 18, 10 / 9, 0, 10 / 3], rtol=1e-6)
    counted = weigh(np.ones(10, np.float32), labels, weights)
    # The mean weight of an example is 1, and each class that is there has the same sum.
    assert np.mean(counted) == pytest.approx(1)
    np.testing.assert_allclose([counted[labels == label].sum() for label in (0, 1, 3)], 10 / 3, rtol=1e-6)


def test_without_weights_the_losses_stay():
    losses = np.float32([1, 2])
    assert weigh(losses, np.array([0, 1]), None) is losses
