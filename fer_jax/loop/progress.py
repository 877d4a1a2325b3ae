"""The state of the loop beside the TrainState: metric sums of the epoch, the best epoch, early stopping. Pure."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fer_jax.errors import Diverged


@dataclasses.dataclass
class Progress:
    """The state of the loop; it is stored in every checkpoint, so that a resumed run continues exactly.

    loss, correct, count: sums over the current epoch so far. epochs: the number of epochs that were trained and
    evaluated. best_accuracy: in the metric that the run selects by. patience_accuracy: the accuracy that the patience
    counts from. skipped, skipped_in_a_row: numbers of steps skipped because their loss or gradient was not finite.
    """

    loss: float = 0.0
    correct: int = 0
    count: int = 0
    epochs: int = 0
    best_accuracy: float | None = None
    best_epoch: int | None = None
    epochs_without_improvement: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    patience_accuracy: float | None = None

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "Progress":
        """Returns the progress stored in a checkpoint; fields that only another version has are ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in stored.items() if key in known})

    def add(self, metric_sums: dict, *, max_consecutive_skips: int = 0) -> None:
        """Adds the metric sums of one training step.

        Raises Diverged if the loss is not finite, or after more than `max_consecutive_skips` skipped steps in a row.
        """
        if not math.isfinite(metric_sums["loss"]):
            raise Diverged("the training loss is not finite")
        if metric_sums.get("skipped", False):
            self.skipped += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row > max_consecutive_skips:
                raise Diverged(f"loss or gradient is not finite, in {self.skipped_in_a_row} steps in a row")
        else:
            self.skipped_in_a_row = 0
        self.loss += float(metric_sums["loss"])
        self.correct += int(metric_sums["correct"])
        self.count += int(metric_sums["count"])

    def mean(self) -> dict[str, float]:
        """Returns the epoch's mean loss and accuracy so far; NaN if every step was skipped."""
        if not self.count:
            return {"loss": math.nan, "accuracy": math.nan}
        return {"loss": self.loss / self.count, "accuracy": self.correct / self.count}

    def is_complete(self, num_epochs: int, patience: int) -> bool:
        """Returns whether the run is over: stopped early, or trained for `num_epochs`."""
        return self.epochs >= num_epochs or self.epochs_without_improvement >= patience

    def end_epoch(self, evaluation: dict, *, min_delta: float) -> bool:
        """Records an epoch's validation metrics, loss and score, and returns whether its score is the best so far.

        The score is the accuracy that the run selects by.

        The best score is strictly greater than all before it. `min_delta` affects only the patience, which counts the
        epochs in a row that were not better by more than `min_delta` than the epoch it counts from. Raises Diverged if
        the validation loss is not finite.
        """
        if not math.isfinite(evaluation["loss"]):
            raise Diverged("the validation loss is not finite")
        accuracy = evaluation["score"]
        self.epochs += 1
        self.loss, self.correct, self.count = 0.0, 0, 0

        # Version 0.1.0 stored no patience_accuracy, since it applied min_delta to the best accuracy itself.
        reference = self.best_accuracy if self.patience_accuracy is None else self.patience_accuracy
        if reference is None or accuracy - reference > min_delta:
            self.patience_accuracy, self.epochs_without_improvement = accuracy, 0
        else:
            self.patience_accuracy, self.epochs_without_improvement = reference, self.epochs_without_improvement + 1

        # min_delta does not apply here: any greater accuracy is the best.
        is_best = self.best_accuracy is None or accuracy > self.best_accuracy
        if is_best:
            self.best_accuracy, self.best_epoch = accuracy, self.epochs
        return is_best
