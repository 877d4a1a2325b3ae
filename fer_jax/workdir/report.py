"""Writes the results of a run for people to read: history, curves, confusion matrices, evaluations, tables."""

import json
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from fer_jax.workdir.events import without_nonfinite

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def history(events: Iterable[dict], metric: str = "accuracy") -> "pd.DataFrame":
    """Returns a row for each finished epoch, from the events of metrics.jsonl.

    The training metrics are those of the epoch's last 'train' event, which are the means over the epoch. metric: the
    validation metric that the run selects by.
    """
    import pandas as pd  # takes half a second with matplotlib, which training needn't wait for

    measured = list(dict.fromkeys(["loss", "accuracy", metric]))
    rows, missing = {}, float("nan")  # events leave out values that are not finite
    for event in events:
        row = rows.setdefault(event["epoch"], {})
        if event["kind"] == "train":
            row |= {f"train_{key}": event.get(key, missing) for key in ("loss", "accuracy")}
            row |= {key: event.get(key, missing) for key in ("learning_rate", "images_per_second")}
        else:  # validation, or validation_ema
            row |= {"step": event["step"]} | {f"{event['kind']}_{key}": event.get(key, missing) for key in measured}
    finished = {epoch: row for epoch, row in sorted(rows.items()) if "validation_accuracy" in row}
    columns = ["step", "train_loss", "train_accuracy", *(f"validation_{key}" for key in measured)]
    # Only runs with a moving average of the weights have these.
    if any("validation_ema_accuracy" in row for row in finished.values()):
        columns += [f"validation_ema_{key}" for key in measured]
    columns += ["learning_rate", "images_per_second"]
    return pd.DataFrame.from_dict(finished, orient="index", columns=columns).rename_axis("epoch").reset_index()


def write_history(
    events: Iterable[dict],
    *,
    dataset_name: str,
    dataset_fingerprint: str,
    folder: epath.Path,
    targets: str = "labels",
    metric: str = "accuracy",
) -> None:
    """Writes history.csv and curves.png, which marks the first epoch whose validation metric is the greatest.

    Args:
      events: the events of metrics.jsonl.
      dataset_name, dataset_fingerprint: columns of history.csv, and the title of curves.png.
      targets: a description of the training loss's targets; the validation loss is against the labels.
      metric: the accuracy that the run selects by, 'accuracy' or 'accuracy_without_copies'.
      folder: the folder of both files; created if it is missing.
    """
    folder.mkdir(exist_ok=True)
    table = history(events, metric)
    named = table.assign(dataset=dataset_name, dataset_fingerprint=dataset_fingerprint)
    (folder / "history.csv").write_text(named.to_csv(index=False))
    if table[f"validation_{metric}"].isna().all():
        return
    # idxmax takes the first of equals, as training does: its best checkpoint is strictly better than those before it.
    accuracies = table.filter(regex=rf"^validation(_ema)?_{metric}$").max(axis="columns")
    best_epoch, best_accuracy = table["epoch"][accuracies.idxmax()], accuracies.max()
    figure = _make_figure((10, 4))
    axes = figure.subplots(1, 2)
    for axis, figure_of, scale in zip(axes, ("accuracy", "loss"), (100, 1), strict=True):
        for split, color, label in (
            ("train", "tab:gray", "train"),
            ("validation", "tab:blue", "validation"),
            ("validation_ema", "tab:green", "validation, averaged weights"),
        ):
            if f"{split}_{figure_of}" in table:
                values = table[f"{split}_{figure_of}"] * scale
                axis.plot(table["epoch"], values, color=color, marker="o", markersize=3, label=label)
        axis.axvline(best_epoch, color="tab:orange", linestyle=":", label=f"best: epoch {best_epoch:.0f}")
        axis.set(xlabel="epoch", ylabel="accuracy (%)" if figure_of == "accuracy" else "cross-entropy (nats)")
        axis.set_xlim(0.5, max(table["epoch"].max(), 2) + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend()
    # If the targets differ, the two losses can't be compared, which the figure should say.
    if targets != "labels":
        axes[1].set_title(f"in training against {targets}, in validation against labels", fontsize=9)
    title = f"{dataset_name} ({dataset_fingerprint})"
    figure.suptitle(f"{title}: best validation {metric.replace('_', ' ')} {best_accuracy:.2%}", fontsize=11)
    save_figure(figure, folder / "curves.png", dpi=120)


def write_evaluation(evaluation: dict, folder: epath.Path, name: str | None = None) -> None:
    """Writes confusion_matrix_<name>.png and evaluation_<name>.json; values that are not finite are left out.

    name: the split's name if None, which is used for the run's own data.
    """
    folder.mkdir(exist_ok=True)
    split = evaluation["split"]
    name = split if name is None else name
    counts = np.array(evaluation["confusion_matrix"])
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = evaluation["class_names"]
    figure = _make_figure((6.5, 6))
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if share[row, column] > 0.5 else "black"
        text = f"{share[row, column]:.0%}\n{count}"
        axis.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="predicted", ylabel="true")
    title = f"{evaluation['dataset']} ({evaluation['dataset_fingerprint']}), {split}"
    axis.set_title(f"{title}\naccuracy {describe_accuracy(evaluation)}", fontsize=10)
    save_figure(figure, folder / f"confusion_matrix_{name}.png", dpi=110)
    # Written last, because `is_reported` takes this file for the whole report.
    text = json.dumps(without_nonfinite(evaluation), indent=2, allow_nan=False)
    (folder / f"evaluation_{name}.json").write_text(text + "\n")


def is_reported(folder: epath.Path, split: str, *, step: int, views: Collection[str]) -> bool:
    """Returns whether evaluation_<split>.json exists, is intact, and is of the checkpoint of `step` with `views`."""
    try:
        evaluation = json.loads((folder / f"evaluation_{split}.json").read_text())
        return evaluation["checkpoint_step"] == step and set(views) <= evaluation.get("views", {}).keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _make_figure(size: tuple[float, float]) -> "Figure":
    # pyplot is not used: its backend belongs to the program that imports this module, such as a notebook.
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def save_figure(figure: "Figure", path: epath.Path, *, dpi: int) -> None:
    """Writes the figure to a PNG file, which may be in a bucket."""
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=dpi)


def table(evaluation: dict) -> str:
    """Returns the evaluation as a table for people to read."""
    width = max(10, 1 + max(map(len, evaluation["class_names"])))
    lines = [
        f"{evaluation['split']} split of {evaluation['dataset']} ({evaluation['dataset_fingerprint']}), "
        f"{evaluation['num_examples']:,} images",
        f"checkpoint of step {evaluation['checkpoint_step']}, "
        f"{'averaged weights, ' if evaluation.get('is_ema') else ''}{evaluation['selected_on']}",
        "",
        f"  accuracy           {describe_accuracy(evaluation)}",
        f"  balanced accuracy  {evaluation['balanced_accuracy']:.2%}",
        f"  macro F1           {evaluation['macro_f1']:.4f}",
        f"  loss               {evaluation['loss']:.4f}",
    ]
    others = evaluation.get("without_copies", evaluation)
    if copies := evaluation["num_examples"] - others["num_examples"]:
        lines.append(
            f"  accuracy           {describe_accuracy(others)} without the {copies:,} that are in its train split too"
        )
    views = evaluation.get("views", {})
    if len(views) > 1:
        lines += ["", f"  {'view':<17}{'accuracy':>10}{'loss':>10}"]
        lines += [
            f"  {view:<17}{found['accuracy']:>10.2%}{found['loss']:>10.4f}"
            + (" (the network's own, of which the rest is)" if view == evaluation["view"] else "")
            for view, found in views.items()
        ]
    lines += [
        "",
        f"  {'class':<{width}}{'precision':>10}{'recall':>10}{'F1':>10}{'images':>9}",
    ]
    for name, figures in evaluation["per_class"].items():
        lines.append(
            f"  {name:<{width}}{figures['precision']:>10.4f}{figures['recall']:>10.4f}{figures['f1']:>10.4f}"
            f"{figures['support']:>9,}"
        )
    # A network that always predicts one class can have a fair accuracy and still be useless.
    predicted = np.sum(evaluation["confusion_matrix"], axis=0)
    never = [name for name, count in zip(evaluation["class_names"], predicted, strict=True) if not count]
    if never:
        of = len(evaluation["class_names"])
        verb = "is" if len(never) == 1 else "are"
        lines += ["", f"  {len(never)} of {of} classes {verb} never predicted: {', '.join(never)}"]
    lines += ["", "  rows: true, columns: predicted", "  " + " " * width]
    lines[-1] += "".join(f"{name[:8]:>9}" for name in evaluation["class_names"])
    for name, row in zip(evaluation["class_names"], evaluation["confusion_matrix"], strict=True):
        lines.append(f"  {name:<{width}}" + "".join(f"{count:>9,}" for count in row))
    return "\n".join(lines)


def describe_accuracy(evaluation: dict) -> str:
    """Returns the accuracy of an evaluation with its interval, for people to read."""
    low, high = evaluation["accuracy_ci95"]
    return f"{evaluation['accuracy']:.2%} (95% interval {low:.2%} to {high:.2%})"
