import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from fer_jax.data.dataset import CLASS_NAMES
from fer_jax.inference import metrics

NUM_CLASSES = len(CLASS_NAMES)
SIZE = 60  # one size for all tests: one compilation

evaluation_sums = jax.jit(metrics.evaluation_sums)


def random_batch(seed: int, classes=range(NUM_CLASSES)):
    """Returns (logits, labels) in which about half the labels are predicted."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, SIZE).astype(np.int32)
    logits = rng.normal(size=(SIZE, NUM_CLASSES)).astype(np.float32)
    logits[np.arange(SIZE), labels] += 1.0
    return logits, labels


def sums_of(logits, labels, mask=None) -> dict:
    return jax.device_get(evaluation_sums(logits, labels, np.ones(SIZE, bool) if mask is None else mask))


def sums_from_confusion(confusion, loss: float = 0.0) -> dict:
    return {"loss": np.float32(loss), "confusion": np.asarray(confusion, np.int32)}


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_sklearn_on_the_raw_labels(seed):
    logits, labels = random_batch(seed)
    predicted = logits.argmax(axis=-1)
    summary = metrics.summarize(sums_of(logits, labels), CLASS_NAMES)

    assert summary["num_examples"] == SIZE
    assert summary["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert summary["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(labels, predicted, average="macro"))
    assert summary["balanced_accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels, predicted))
    assert summary["loss"] == pytest.approx(
        sklearn_metrics.log_loss(labels, np.exp(log_softmax(logits)), labels=range(NUM_CLASSES)), rel=1e-5
    )
    assert summary["confusion_matrix"] == sklearn_metrics.confusion_matrix(labels, predicted).tolist()
    expected = sklearn_metrics.precision_recall_fscore_support(labels, predicted, labels=range(NUM_CLASSES))
    for name, precision, recall, f1, support in zip(CLASS_NAMES, *expected, strict=True):
        assert summary["per_class"][name] == pytest.approx(
            {"precision": precision, "recall": recall, "f1": f1, "support": support}
        )


def test_rows_of_the_confusion_matrix_are_the_true_class():
    logits, labels = np.zeros((SIZE, NUM_CLASSES), np.float32), np.full(SIZE, 2, np.int32)
    logits[:, 5] = 1.0
    expected = np.zeros((NUM_CLASSES, NUM_CLASSES))
    expected[2, 5] = SIZE
    np.testing.assert_array_equal(sums_of(logits, labels)["confusion"], expected)


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_counts_nowhere_whatever_it_holds(rubbish):
    logits, labels = random_batch(0)
    mask = np.arange(SIZE) % 3 != 0
    dirty = logits.copy()
    dirty[~mask] = rubbish
    # Not compiled: XLA may turn a product with a mask into a select, which would hide that NaN times 0 is NaN.
    with jax.disable_jit():
        sums = jax.device_get(metrics.evaluation_sums(dirty, jnp.asarray(np.where(mask, labels, 0)), mask))
    predicted = logits.argmax(axis=-1)
    np.testing.assert_array_equal(
        sums["confusion"], sklearn_metrics.confusion_matrix(labels[mask], predicted[mask], labels=range(NUM_CLASSES))
    )
    losses = -log_softmax(logits)[np.arange(SIZE), labels]
    assert metrics.mean_loss(sums) == pytest.approx(losses[mask].mean(), rel=1e-5)
    assert metrics.accuracy(sums) == pytest.approx((labels == predicted)[mask].mean())


def test_only_padding_sums_to_nothing():
    sums = sums_of(*random_batch(0), np.zeros(SIZE, bool))
    assert (sums["loss"], sums["confusion"].sum()) == (0.0, 0)


def test_a_loss_that_is_not_finite_shows_where_it_is_not_padding():
    logits, labels = random_batch(0)
    logits[4] = np.nan
    assert math.isnan(metrics.mean_loss(sums_of(logits, labels)))


@given(
    seed=st.integers(0, 2**31 - 1),
    parts=st.lists(st.integers(0, 3), min_size=SIZE, max_size=SIZE).map(np.array),
)
def test_sums_of_parts_add_up_to_the_whole(seed, parts):
    logits, labels = random_batch(seed)
    whole = sums_of(logits, labels, parts < 3)
    added = jax.tree.map(lambda *leaves: sum(leaves), *(sums_of(logits, labels, parts == part) for part in range(3)))
    np.testing.assert_array_equal(added["confusion"], whole["confusion"])
    np.testing.assert_allclose(added["loss"], whole["loss"], rtol=1e-5)
    assert whole["confusion"].sum() == (parts < 3).sum()


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Computed by hand with z = 1.96: centre (0.73 + 0.0192) / 1.0384, half width 1.96 * 0.0455 / 1.0384.
        (73, 100, 0.6357, 0.8073),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (2620, 3589, 0.7152, 0.7443),
    ],
)
def test_interval_is_wilsons(correct, total, low, high):
    confusion = np.diag([correct, 0, 0, 0, 0, 0, 0])
    confusion[0, 1] = total - correct
    summary = metrics.summarize(sums_from_confusion(confusion), CLASS_NAMES)
    assert summary["accuracy_ci95"] == pytest.approx([low, high], abs=6e-5)
    z, p = 1.959963984540054, correct / total
    centre, half = p + z**2 / (2 * total), z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    expected = [(centre - half) / (1 + z**2 / total), (centre + half) / (1 + z**2 / total)]
    assert summary["accuracy_ci95"] == pytest.approx(expected, abs=1e-9)


def test_a_class_without_examples_counts_in_no_mean():
    present = [0, 2, 3, 4, 5, 6]
    logits, labels = random_batch(3, present)
    logits[:5, 1] = 100.0  # disgust, the absent class, is predicted a few times
    predicted = logits.argmax(axis=-1)
    summary = metrics.summarize(sums_of(logits, labels), CLASS_NAMES)
    assert summary["per_class"]["disgust"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert summary["macro_f1"] == pytest.approx(
        sklearn_metrics.f1_score(labels, predicted, labels=present, average="macro")
    )
    assert summary["balanced_accuracy"] == pytest.approx(
        sklearn_metrics.recall_score(labels, predicted, labels=present, average="macro")
    )


def test_a_class_never_predicted_has_precision_zero_and_counts():
    confusion = np.diag([10, 0, 10, 10, 10, 10, 10])
    confusion[1, 0] = 10
    summary = metrics.summarize(sums_from_confusion(confusion, loss=35.0), CLASS_NAMES)
    assert summary["per_class"]["disgust"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 10}
    assert summary["per_class"]["angry"] == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 10})
    assert summary["balanced_accuracy"] == pytest.approx(6 / 7)
    assert summary["macro_f1"] == pytest.approx((2 / 3 + 5) / 7)
    assert summary["loss"] == 0.5
