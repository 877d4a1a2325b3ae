"""selection.json: what was chosen on validation after the training of a run, beside its best checkpoint.

{"view": the view that the network is shown, "metric": what it is the best by, "validation": {view: that metric}}.
"""

import json
from collections.abc import Sequence

from fer_jax.errors import UserError
from fer_jax.workdir.paths import Workdir


def read_view(workdir: Workdir, possible: Sequence[str]) -> str | None:
    """Returns the view that was chosen, or None where none was.

    possible: the views that the network can be shown. Raises UserError where the file is damaged or names none of them.
    """
    try:
        view = json.loads(workdir.selection.read_text())["view"]
        if view not in possible:
            raise ValueError(f"view {view!r} is none of {', '.join(possible)}")
        return view
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        # Not passed over: with another view the network's accuracy is another one.
        raise UserError(
            f"{workdir.selection} can't be read ({error}); without that file the view of training is taken"
        ) from None


def write_view(workdir: Workdir, view: str, metric: str, scores: dict[str, float]) -> None:
    """Writes the view that was chosen and, by view, the scores that it was chosen by, whole or not at all."""
    # Renamed into place, so that a crash never leaves half of it.
    partial = workdir.selection.with_suffix(".partial")
    partial.write_text(json.dumps({"view": view, "metric": metric, "validation": scores}, indent=2) + "\n")
    partial.replace(workdir.selection)
