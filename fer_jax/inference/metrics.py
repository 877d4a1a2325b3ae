"""Computes the masked sums of an evaluation on the device; from them accuracy, confusion matrix and other metrics."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax


def evaluation_sums(logits, labels, mask, is_copy=None):
    """Returns the metric sums of one batch; those of all batches of a split add up to those of the split.

    Args:
      logits: float32 [batch, classes].
      labels: int32 [batch].
      mask: bool [batch], False where an example is padding.
      is_copy: bool [batch], True where the image is also in the training split; None if that is not known.

    Returns:
      loss: float32 [], the summed cross-entropy in nats. confusion: int32 [classes, classes], rows are the true class;
      confusion_of_copies: that of the copies alone, if they are known.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.int32) * mask[:, None]
    predicted = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=jnp.int32)
    # Padding may have any loss, even a non-finite one, which a product with zero would let through.
    sums = {"loss": jnp.sum(jnp.where(mask, losses, 0.0)), "confusion": true.T @ predicted}
    return sums if is_copy is None else sums | {"confusion_of_copies": (true * is_copy[:, None]).T @ predicted}


def accuracy(metric_sums: dict) -> float:
    """Returns the share of examples on the diagonal of the confusion matrix."""
    return int(np.trace(metric_sums["confusion"])) / int(np.sum(metric_sums["confusion"]))


def without_copies(metric_sums: dict) -> np.ndarray | None:
    """Returns the confusion matrix of the images that are not also in train; None if unknown, or without images."""
    others = metric_sums["confusion"] - metric_sums.get("confusion_of_copies", metric_sums["confusion"])
    # In a folder of training images all are copies, which would leave no images to divide by.
    return others if others.any() else None


def selection_metrics(metric_sums: dict) -> dict[str, float]:
    """Returns loss, accuracy and, if copies are known, accuracy_without_copies."""
    found = {"loss": mean_loss(metric_sums), "accuracy": accuracy(metric_sums)}
    confusion = without_copies(metric_sums)
    return found if confusion is None else found | {"accuracy_without_copies": accuracy({"confusion": confusion})}


def accuracy_with_interval(confusion: np.ndarray) -> dict:
    """Returns num_examples, accuracy and accuracy_ci95, its 95 % interval after Wilson (1927)."""
    from scipy.stats import binomtest  # takes a second to import, which training needn't wait for

    total, correct = int(confusion.sum()), int(np.trace(confusion))
    # Wilson's interval stays within 0 and 1 and is valid for few images, unlike the usual one.
    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return {
        "num_examples": total,
        "accuracy": correct / total,
        "accuracy_ci95": [float(interval.low), float(interval.high)],
    }


def mean_loss(metric_sums: dict) -> float:
    """Returns the cross-entropy per example, in nats."""
    return float(metric_sums["loss"]) / int(np.sum(metric_sums["confusion"]))


def summarize_shortly(metric_sums: dict) -> dict:
    """Returns the accuracy with its interval, the loss and, if copies are known, the accuracy without_copies."""
    found = {**accuracy_with_interval(metric_sums["confusion"]), "loss": mean_loss(metric_sums)}
    confusion = without_copies(metric_sums)
    return found if confusion is None else found | {"without_copies": accuracy_with_interval(confusion)}


def summarize(metric_sums: dict, class_names: Sequence[str]) -> dict:
    """Returns the metrics of a report as plain Python values.

    The 95 % interval of the accuracy is Wilson's (1927). A class that is never predicted has precision 0. A class
    without examples counts in neither the macro F1 nor the balanced accuracy.
    """
    from sklearn.metrics import precision_recall_fscore_support

    confusion = np.asarray(metric_sums["confusion"])
    true, predicted = np.indices(confusion.shape).reshape(2, -1)
    # Each cell of the confusion matrix is weighted by the number of examples that it counts.
    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=range(len(class_names)), sample_weight=confusion.ravel(), zero_division=0.0
    )
    present = support > 0
    return {
        **summarize_shortly(metric_sums),
        "macro_f1": float(f1[present].mean()),
        "balanced_accuracy": float(recall[present].mean()),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(class_names)
        },
        "confusion_matrix": confusion.tolist(),
    }
