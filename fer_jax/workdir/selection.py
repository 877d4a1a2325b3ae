"""selection.json: the view that was selected on validation after the training of a run, for its best checkpoint.

{"view": the view that the network is shown, "step": the step of that checkpoint, "metric": the name of the metric by
which the view was the best, "validation": {view: its value of that metric}}.
"""

import json
from collections.abc import Sequence

from fer_jax.errors import UserError
from fer_jax.workdir.paths import Workdir, write_whole


def read_view(workdir: Workdir, possible: Sequence[str]) -> str | None:
    """Returns the view that was selected, or None if none was.

    possible: the views that the network can be shown. Raises UserError if the file is damaged or names none of them.
    """
    try:
        view = json.loads(workdir.selection.read_text())["view"]
        if view not in possible:
            raise ValueError(f"view {view!r} is none of {', '.join(possible)}")
        return view
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        # An error rather than a default: with another view the network has another accuracy.
        raise UserError(
            f"{workdir.selection} can't be read ({error}); without that file the view of training is taken"
        ) from None


def is_of(workdir: Workdir, step: int) -> bool:
    """Returns whether a view was selected for the checkpoint of `step`."""
    try:
        return json.loads(workdir.selection.read_text())["step"] == step
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_view(workdir: Workdir, view: str, metric: str, scores: dict[str, float], *, step: int) -> None:
    """Writes the selected view, the metric that selected it, its scores by view, and the checkpoint's step."""
    document = {"view": view, "step": step, "metric": metric, "validation": scores}
    write_whole(workdir.selection, json.dumps(document, indent=2) + "\n")
