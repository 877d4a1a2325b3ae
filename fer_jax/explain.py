"""Draws the errors that a network was most certain of, each beside what the network looked at, as one sheet."""

import jax
import numpy as np

from fer_jax.errors import UserError
from fer_jax.evaluate import Evaluated
from fer_jax.faces import overlay
from fer_jax.inference import explanation
from fer_jax.system.terminal import Terminal
from fer_jax.workdir import error_sheet
from fer_jax.workdir.paths import Workdir


def require_one_process() -> None:
    """Raises UserError if there are several processes, since each of them would draw only a part of the images."""
    if jax.process_count() > 1:
        raise UserError(f"--explain is for one process; this run has {jax.process_count()}")


def draw_errors(evaluated: Evaluated, *, number: int, workdir: Workdir) -> None:
    """Writes report/errors_<name of the report>.png: of each class, the errors that the network was most certain of.

    number: how many errors to draw of each class, at most. Must be called in a single process.
    """
    terminal = Terminal(is_primary=True)
    trained, split = evaluated.trained, evaluated.dataset.split(evaluated.split)
    title = f"{evaluated.dataset.name}, {evaluated.split}: the errors of which step {trained.step} was the most certain"
    probabilities = trained.probabilities(split.images)
    # The predictions are those of the network's own view, as in the report.
    rows = most_certain_errors(probabilities, split.labels, number)
    indices = np.concatenate([*rows.values(), np.zeros(0, int)]).astype(int)
    predicted = probabilities[indices].argmax(axis=1)
    maps = explanation.explain(trained, split.images[indices], predicted)
    errors = [
        error_sheet.Error(
            true=trained.class_names[split.labels[index]],
            predicted=trained.class_names[as_class],
            probability=float(probabilities[index, as_class]),
            index=int(index),
            image=split.images[index],
            drawn=overlay.overlay(split.images[index], importance),
        )
        for index, as_class, importance in zip(indices, predicted, maps, strict=True)
    ]
    path = error_sheet.write(
        errors,
        trained.class_names,
        workdir.report,
        name=evaluated.report_name,
        title=title,
        ramp=overlay.legend(256, 1),
    )
    terminal.say(f"The {len(errors)} most certain errors, and what the network looked at: {path}")


def most_certain_errors(probabilities: np.ndarray, labels: np.ndarray, number: int) -> dict[int, np.ndarray]:
    """Returns, by true class, the indices of the wrongly classified images, the most certain first, `number` at most.

    probabilities: float [n, classes]. labels: int [n].
    """
    predicted, certainty = probabilities.argmax(axis=1), probabilities.max(axis=1)
    by_class = {}
    for label in range(probabilities.shape[1]):
        wrong = np.flatnonzero((labels == label) & (predicted != label))
        # A stable sort leaves equally certain images in the order of the file.
        by_class[label] = wrong[np.argsort(-certainty[wrong], kind="stable")][:number]
    return by_class
