"""What the loop knows beside the TrainState, pure: sums of the epoch so far, the best so far, early stopping."""

import dataclasses
import math

from flax.training.early_stopping import EarlyStopping

from fer_jax.errors import Diverged


@dataclasses.dataclass
class Progress:
    """Goes into every checkpoint, so that a resumed run continues exactly.

    loss, correct and count: summed over the current epoch so far. epochs: how many are trained and evaluated. skipped:
    steps that were left out because their loss or gradient wasn't finite, in all and without one between.
    """

    loss: float = 0.0
    correct: int = 0
    count: int = 0
    epochs: int = 0
    best_accuracy: float | None = None
    best_epoch: int | None = None
    epochs_without_improvement: int = 0
    should_stop: bool = False
    skipped: int = 0
    skipped_in_a_row: int = 0

    def add(self, sums: dict, *, most_skipped: int = 0) -> None:
        """Adds one training step's sums.

        Raises Diverged where its loss is not finite, or where it is skipped and `most_skipped` before it were too.
        """
        if not math.isfinite(sums["loss"]):
            raise Diverged("the training loss is not finite")
        if sums.get("skipped", False):
            self.skipped += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row > most_skipped:
                raise Diverged(f"loss or gradient is not finite, in {self.skipped_in_a_row} steps in a row")
        else:
            self.skipped_in_a_row = 0
        self.loss += float(sums["loss"])
        self.correct += int(sums["correct"])
        self.count += int(sums["count"])

    def mean(self) -> dict:
        """Gives the epoch's training figures so far; nan where every step was skipped."""
        if not self.count:
            return {"loss": math.nan, "accuracy": math.nan}
        return {"loss": self.loss / self.count, "accuracy": self.correct / self.count}

    def end_epoch(self, evaluation: dict, *, patience: int, min_delta: float) -> bool:
        """Takes in the epoch's validation loss and accuracy; says whether the accuracy is the best so far.

        Sets should_stop after `patience` epochs in a row without an accuracy better by more than `min_delta`. Raises
        Diverged where the validation loss is not finite.
        """
        if not math.isfinite(evaluation["loss"]):
            raise Diverged("the validation loss is not finite")
        best = math.inf if self.best_accuracy is None else -self.best_accuracy
        # EarlyStopping minimises, and stops one epoch later than its patience.
        stopping = EarlyStopping(min_delta, patience - 1, best, self.epochs_without_improvement)
        stopping = stopping.update(-evaluation["accuracy"])
        self.epochs += 1
        self.loss, self.correct, self.count = 0.0, 0, 0
        if stopping.has_improved:
            self.best_accuracy, self.best_epoch = evaluation["accuracy"], self.epochs
        self.epochs_without_improvement = stopping.patience_count
        self.should_stop = stopping.should_stop
        return stopping.has_improved
