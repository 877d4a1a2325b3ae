import dataclasses
import math

import pytest

from fer_jax.errors import Diverged
from fer_jax.loop.progress import Progress


def run_epochs(accuracies, *, patience=3, min_delta=0.0) -> tuple[Progress, list[bool]]:
    """Ends an epoch for each accuracy until patience runs out; returns the progress and which were the best so far."""
    progress, is_best = Progress(), []
    for accuracy in accuracies:
        is_best.append(progress.end_epoch({"loss": 1.0, "score": accuracy}, min_delta=min_delta))
        if progress.epochs_without_improvement >= patience:
            break
    return progress, is_best


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_stops_after_exactly_patience_epochs_without_improvement(patience):
    progress, is_best = run_epochs([0.5, 0.6] + 20 * [0.55], patience=patience)
    assert progress.epochs == len(is_best) == 2 + patience
    assert (progress.best_accuracy, progress.best_epoch) == (0.6, 2)
    assert progress.epochs_without_improvement == patience


def test_an_improvement_starts_the_count_again():
    progress, is_best = run_epochs([0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.7, 0.1, 0.2, 0.3, 0.9])
    assert is_best == [True, False, False, True, False, False, True, False, False, False]
    assert progress.is_complete(100, patience=3)
    assert (progress.best_accuracy, progress.best_epoch) == (0.7, 7)


def test_goes_on_while_it_improves():
    progress, is_best = run_epochs([epoch / 100 for epoch in range(50)], patience=1)
    assert all(is_best)
    assert not progress.is_complete(100, patience=1)
    assert progress.best_epoch == 50


def test_a_tie_is_no_improvement_and_the_first_stays_the_best():
    progress, is_best = run_epochs(10 * [0.5])
    assert is_best == [True, False, False, False]
    assert progress.best_epoch == 1


def test_a_first_accuracy_of_zero_is_the_best_so_far():
    progress, is_best = run_epochs([0.0, 0.0, 0.1])
    assert is_best == [True, False, True]
    assert progress.best_epoch == 3


def test_best_is_strictly_greater_whatever_min_delta_is():
    progress, is_best = run_epochs([0.500, 0.505, 0.509], min_delta=0.01)
    assert is_best == [True, True, True]
    assert (progress.best_accuracy, progress.best_epoch) == (0.509, 3)


def test_the_patience_counts_from_the_last_accuracy_that_was_better_by_more_than_min_delta():
    # These are binary fractions, so that a difference of min_delta is computed exactly.
    progress, is_best = run_epochs([0.5, 0.5625, 0.625, 0.75, 0.75], min_delta=0.125, patience=5)
    assert is_best == [True, True, True, True, False]
    assert progress.epochs_without_improvement == 1  # since 0.75, the first above 0.5 + 0.125
    progress, _ = run_epochs([0.5, 0.5625, 0.625, 0.6875], min_delta=0.25, patience=3)
    assert progress.is_complete(100, patience=3)
    assert progress.best_epoch == 4


def test_small_steps_add_up_against_where_the_patience_counts_from():
    progress, _ = run_epochs([0.5, 0.5625, 0.625, 0.6875], min_delta=0.125, patience=10)
    assert progress.epochs_without_improvement == 0


def test_a_progress_that_version_0_1_stored_goes_on_from_its_best_accuracy():
    progress = Progress(epochs=2, best_accuracy=0.5, best_epoch=1, epochs_without_improvement=1)
    progress.end_epoch({"loss": 1.0, "score": 0.5}, min_delta=0.0)
    assert progress.epochs_without_improvement == 2


def test_continuing_from_a_stored_progress_stops_at_the_same_epoch():
    accuracies = [0.5, 0.6, 0.4, 0.5, 0.4, 0.4]
    whole, _ = run_epochs(accuracies)
    for cut in range(1, 5):
        progress, _ = run_epochs(accuracies[:cut])
        # Earlier versions stored one more key.
        progress = Progress.from_stored(dataclasses.asdict(progress) | {"should_stop": False})
        for accuracy in accuracies[cut:]:
            if progress.is_complete(100, patience=3):
                break
            progress.end_epoch({"loss": 1.0, "score": accuracy}, min_delta=0.0)
        assert progress == whole


def test_means_are_over_examples_not_steps():
    progress = Progress()
    progress.add({"loss": 10.0, "correct": 6, "count": 8})
    progress.add({"loss": 2.0, "correct": 0, "count": 2})
    assert progress.mean() == {"loss": 1.2, "accuracy": 0.6}


def test_an_epochs_sums_start_at_nothing():
    progress = Progress()
    progress.add({"loss": 10.0, "correct": 6, "count": 8})
    progress.end_epoch({"loss": 1.0, "score": 0.5}, min_delta=0.0)
    progress.add({"loss": 1.0, "correct": 1, "count": 2})
    assert progress.mean() == {"loss": 0.5, "accuracy": 0.5}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_training_loss_that_is_not_finite_is_divergence(loss):
    progress = Progress()
    with pytest.raises(Diverged, match="training loss"):
        progress.add({"loss": loss, "correct": 1, "count": 8})
    assert progress == Progress()


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_is_divergence(loss):
    progress = Progress()
    with pytest.raises(Diverged, match="validation loss"):
        progress.end_epoch({"loss": loss, "score": 0.9}, min_delta=0.0)
    assert progress == Progress()
