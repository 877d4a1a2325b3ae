"""Writes a table of finished runs as Markdown: python -m scripts.results RUN [RUN ...] [--split=test] [--baseline=RUN]

Runs whose options are equal, except for the seed and options that change no results, form one row: the mean over the
seeds, their standard deviation, the 95 % interval of the mean (Student's t) and each seed's accuracy. Rows other than
the baseline also have their effect, the difference of the means, with its 95 % interval (Welch's t, unpaired). One seed
has no interval, and neither have seeds with equal accuracies. The commands that reproduce the runs follow. All runs
must be evaluated on the same images and labels, and trained on the same data, except for FER+'s votes in the targets.
"""

import argparse
import dataclasses
import json
import math
import shlex
import statistics
import sys
from collections.abc import Sequence

from etils import epath
from ml_collections import config_dict

from fer_jax import config as config_lib
from fer_jax.errors import UserError
from fer_jax.loop.progress import Progress
from fer_jax.options.table import OPTIONS
from fer_jax.system import command_line
from fer_jax.workdir.events import read_events
from fer_jax.workdir.paths import Workdir

SPLITS = ("validation", "test")
# FER-2013's own names of these splits, for a dataset with the fingerprint of all of FER-2013 (docs/results.md).
_FER2013 = "7fcc111d81f1638f"
_OFFICIAL = {"validation": "PublicTest", "test": "PrivateTest"}
# A run may be resumed with another patience, but the epoch at which it ends affects the result.
_ENDS_ELSEWHERE = {"early_stopping.patience"}
# It changes no weights, but the accuracy is that of the best of these views.
_VIEWS = "evaluation.report_views"
# Options of the training targets. They count as changing no results, since the dataset's fingerprint covers them.
_TARGETS = ("dataset.ferplus_task", "dataset.ferplus_target_weight")
# Options that only change the data, by whose fingerprint runs are compared; a command needs them to recreate the data.
_OF_THE_DATA = ("dataset.source", "dataset.classes", "dataset.image_size", "dataset.resize", "dataset.split_seed")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    evaluations: the content of its evaluation_<split>.json, by split. views: the views of which the best on validation
    was chosen.
    """

    path: epath.Path
    config: config_dict.ConfigDict
    evaluations: dict[str, dict]
    views: frozenset[str]

    def value(self, key: str):
        return dict(config_lib.flatten(self.config))[key]

    def experiment(self) -> dict:
        """Returns the options that affect the result of the run, except for the seed."""
        return {
            key: value
            for key, value in config_lib.flatten(self.config)
            if key != "seed" and (OPTIONS[key].changes_results or key in _ENDS_ELSEWHERE or key in _TARGETS)
        } | {_VIEWS: ",".join(sorted(self.views))}

    def targets(self) -> tuple:
        """Returns the values of _TARGETS."""
        return tuple(map(self.value, _TARGETS))

    def trains_on_votes(self) -> bool:
        return self.targets() != tuple(OPTIONS[key].default for key in _TARGETS)

    def data(self) -> tuple[str, str]:
        """Returns the dataset's fingerprint, and its name, which may differ between copies of the same data."""
        evaluation = next(iter(self.evaluations.values()))
        return evaluation["dataset_fingerprint"], evaluation["dataset"]


def read_run(path: str, splits: Sequence[str]) -> Run:
    """Returns a run with its evaluations on `splits`; raises UserError if it is not a finished run."""
    folder = epath.Path(config_lib.expand_path(path, "a run's folder"))
    config = config_lib.load(folder / "config.json")
    evaluations = {split: _read_evaluation(folder, split) for split in splits}
    if len({evaluation["checkpoint_step"] for evaluation in evaluations.values()}) > 1:
        raise UserError(f"{path}: its reports are of different checkpoints; the same command again writes them anew")
    # The reports of an unfinished run may be of --mode=evaluate, or of the run before it was extended.
    if complaint := _incomplete(read_events(Workdir(folder)), config):
        raise UserError(f"{path}: {complaint}")
    return Run(folder, config, evaluations, _candidates(folder, config, next(iter(evaluations.values()))))


def _incomplete(events: Sequence[dict], config: config_dict.ConfigDict) -> str | None:
    """Returns why a run with these events has not ended as its config says, or None if it has."""
    scores: dict[int, float] = {}
    for event in events:
        # The better of the weights and of their average counts.
        if event["kind"].startswith("validation"):
            score = event.get(config.early_stopping.metric, -math.inf)
            scores[event["epoch"]] = max(score, scores.get(event["epoch"], -math.inf))
    progress = Progress()
    for epoch in sorted(scores):
        if progress.is_complete(config.num_epochs, config.early_stopping.patience):
            return f"it has trained {len(scores)} epochs, and by its config would have ended after {progress.epochs}"
        progress.end_epoch({"loss": 0.0, "score": scores[epoch]}, min_delta=config.early_stopping.min_delta)
    if not progress.is_complete(config.num_epochs, config.early_stopping.patience):
        return f"it has trained {len(scores)} of {config.num_epochs} epochs; the same command again finishes it"
    return None


def _candidates(folder: epath.Path, config: config_dict.ConfigDict, evaluation: dict) -> frozenset[str]:
    path = Workdir(folder).selection
    if not path.exists():
        return frozenset([evaluation.get("view", config_lib.training_view(config))])
    try:
        return frozenset(json.loads(path.read_text())["validation"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} can't be read: {error}") from None


def _read_evaluation(folder: epath.Path, split: str) -> dict:
    path = folder / "report" / f"evaluation_{split}.json"
    try:
        evaluation = json.loads(path.read_text())
        # Only the keys that are used are checked: a newer version may add others.
        used = ("accuracy", "num_examples", "checkpoint_step", "selected_on", "dataset", "dataset_fingerprint")
        missing = [key for key in (*used, "per_class") if key not in evaluation]
        if not missing:
            float(evaluation["accuracy"])
            _support(evaluation)
    except FileNotFoundError:
        raise UserError(f"{path} is not there: the run is not finished, or its data have no {split} split") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} can't be read as an evaluation: {error}") from None
    if missing:
        raise UserError(f"{path} is no evaluation: it lacks {', '.join(missing)}")
    # --mode=evaluate --checkpoint=latest writes the same file.
    if evaluation["selected_on"].startswith("not selected"):
        raise UserError(
            f"{path} is of a checkpoint that was {evaluation['selected_on']}; "
            f"--mode=evaluate --workdir={folder} --split={split} evaluates the best one"
        )
    return evaluation


def read_runs(paths: Sequence[str], splits: Sequence[str]) -> list[Run]:
    """Returns the runs; raises UserError with a line for each that can't be in one table with the others."""
    runs, problems = [], []
    # A run that is given twice, for example by --baseline and by runs/*, counts once.
    for path in {epath.Path(path): path for path in paths}.values():
        try:
            run = read_run(path, splits)
        except UserError as error:
            problems.append(str(error))
            continue
        if problem := runs and _complaint(run, runs):
            problems.append(problem)
        else:
            runs.append(run)
    if problems:
        raise UserError("\n".join(problems))
    return runs


def _complaint(run: Run, others: Sequence[Run]) -> str | None:
    """Returns why a run can't be in one table with `others`, which can be in one, or None if it can."""
    # The fingerprint covers the training targets, so it is comparable only between runs with the same targets.
    equal = [other for other in others if other.targets() == run.targets()]
    other = (equal or others)[0]
    # The labels are of seven classes or of FER+'s eight; accuracies on the two are twenty points apart.
    task, their_task = (one.value("dataset.ferplus_task") for one in (run, other))
    if (task == "none") != (their_task == "none"):
        return (
            f"{run.path} is evaluated on {_labels_of(task)}, and {other.path} on {_labels_of(their_task)}: "
            "a table is of one task"
        )
    if equal:
        is_same = run.data()[0] == other.data()[0]
    else:
        is_same = all(map(_is_same_split, run.evaluations.values(), other.evaluations.values()))
    if is_same:
        return None
    (ours, name), (theirs, their_name) = run.data(), other.data()
    beside = "" if equal else ", and their evaluations are on other images or labels"
    return (
        f"{run.path} is of {name} ({ours}), and {other.path} of {their_name} ({theirs}){beside}: "
        "a table is of one dataset"
    )


def _labels_of(task: str) -> str:
    if task == "none":
        return "the labels of its data"
    return f"FER+'s eight classes (config.dataset.ferplus_task is {task})"


def _is_same_split(ours: dict, theirs: dict) -> bool:
    """Returns whether two evaluations are on the same images and labels."""
    if "split_fingerprint" in ours and "split_fingerprint" in theirs:
        return ours["split_fingerprint"] == theirs["split_fingerprint"]
    # Older reports have no fingerprint of their split, only the number of images of each class.
    return _support(ours) == _support(theirs)


def _support(evaluation: dict) -> dict[str, int]:
    return {name: figures["support"] for name, figures in evaluation["per_class"].items()}


def group(runs: Sequence[Run], baseline: Run) -> list[list[Run]]:
    """Returns the runs of each experiment by seed, the baseline's first; raises UserError if a seed occurs twice."""
    groups: dict[str, list[Run]] = {}
    for run in [baseline, *(run for run in runs if run is not baseline)]:
        groups.setdefault(json.dumps(run.experiment(), sort_keys=True), []).append(run)
    for members in groups.values():
        seeds = {}
        for run in members:
            # A seed that counts twice would make the interval too narrow.
            if (other := seeds.setdefault(run.config.seed, run)) is not run:
                raise UserError(f"{other.path} and {run.path} are both seed {run.config.seed} of one experiment")
    return [sorted(members, key=lambda run: run.config.seed) for members in groups.values()]


def interval_of_mean(values: Sequence[float]) -> tuple[float, float] | None:
    """Returns the 95 % interval of the mean by Student's t, or None for one value and for equal ones."""
    from scipy import stats

    # That two seeds agree by chance doesn't make their mean certain.
    if not _have_spread(values):
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return tuple(map(float, stats.t.interval(0.95, len(values) - 1, statistics.mean(values), error)))


def _have_spread(values: Sequence[float]) -> bool:
    return len(values) > 1 and statistics.variance(values) > 0


def interval_of_effect(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float] | None:
    """Returns the 95 % interval of the difference of the means by Welch's t.

    None where either side has one value or equal ones.
    """
    from scipy import stats

    if not (_have_spread(values) and _have_spread(baseline)):
        return None
    effect = statistics.mean(values) - statistics.mean(baseline)
    # The squared standard errors of both means, and the degrees of freedom by Welch and Satterthwaite.
    # stats.ttest_ind would give a warning if runs are nearly equal.
    errors = [statistics.variance(group) / len(group) for group in (values, baseline)]
    degrees = sum(errors) ** 2 / (errors[0] ** 2 / (len(values) - 1) + errors[1] ** 2 / (len(baseline) - 1))
    return tuple(map(float, stats.t.interval(0.95, degrees, effect, math.sqrt(sum(errors)))))


def table(groups: Sequence[Sequence[Run]], split: str) -> list[str]:
    """Returns the lines of a split's table, a row for each group; the first is the baseline."""
    evaluations = [[run.evaluations[split] for run in members] for members in groups]
    has_copies = all("without_copies" in evaluation for members in evaluations for evaluation in members)
    columns = ["options", "seeds", "mean", "SD", "95 % interval", "effect", "95 % interval of the effect", "each seed"]
    columns += ["without copies"] if has_copies else []
    lines = [
        f"| {' | '.join(columns)} |",
        f"|---|{'---:|' * (len(columns) - 1)}",
    ]
    accuracies = [[100 * evaluation["accuracy"] for evaluation in members] for members in evaluations]
    for number, (members, values) in enumerate(zip(groups, accuracies, strict=True)):
        interval = _in_words(interval_of_mean(values), values)
        effect, effect_interval = "", ""
        if number:
            effect = f"{statistics.mean(values) - statistics.mean(accuracies[0]):+.2f}"
            sides = min(values, accuracies[0], key=len)
            effect_interval = _in_words(interval_of_effect(values, accuracies[0]), sides, "+.2f")
        cells = [
            _describe_difference(groups[0][0], members[0]) if number else "baseline",
            str(len(members)),
            f"{statistics.mean(values):.2f}",
            f"{statistics.stdev(values):.2f}" if len(values) > 1 else "",
            interval,
            effect,
            effect_interval,
            ", ".join(f"{run.config.seed}: {value:.2f}" for run, value in zip(members, values, strict=True)),
        ]
        if has_copies:
            cells.append(f"{100 * statistics.mean(e['without_copies']['accuracy'] for e in evaluations[number]):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _in_words(interval: tuple[float, float] | None, values: Sequence[float], form: str = ".2f") -> str:
    """Returns an interval, or why there is none; values: those of it, or the fewer ones if it compares two sides."""
    if interval is None:
        return "one seed" if len(values) < 2 else "equal seeds"
    return f"{interval[0]:{form}} to {interval[1]:{form}}"


def _describe_difference(baseline: Run, run: Run) -> str:
    theirs = baseline.experiment()
    return ", ".join(
        f"`{key}={'unset' if value is None else value}`"
        for key, value in run.experiment().items()
        if value != theirs[key]
    )


def command(run: Run) -> str:
    """Returns the command that reproduces the run: the closest packaged experiment, and the options that differ."""
    wanted = run.experiment() | {key: run.value(key) for key in _OF_THE_DATA}
    if run.trains_on_votes():
        # Only the file's name, as for the data: its folder is of no use to readers of the table.
        wanted["dataset.ferplus"] = epath.Path(run.value("dataset.ferplus")).name
    candidates = []
    for path in sorted(command_line.CONFIGS.glob("*.py")):
        try:
            config = command_line.read_config_file(str(path))
        except UserError:
            continue  # an experiment that takes an argument
        views = {config_lib.training_view(config), *config_lib.report_views(config)}
        there = dict(config_lib.flatten(config)) | {_VIEWS: ",".join(sorted(views))}
        different = {key: value for key, value in wanted.items() if value != there[key]}
        # The command line can't unset an option, so an experiment that doesn't set it comes first.
        candidates.append((None in different.values(), len(different), path.stem, different))
    *_, name, different = min(candidates, key=lambda candidate: candidate[:3])
    parts = [f"python -m fer_jax.main --config={name} --workdir=runs/{run.path.name}"]
    if path := run.value("dataset.path"):
        # Only the name: the folder is of no use to readers of the table.
        parts.append(shlex.quote(f"--data={epath.Path(path).name}"))
    parts += [shlex.quote(f"--config.{key}={value}") for key, value in sorted(different.items()) if value is not None]
    unset = [key for key, value in sorted(different.items()) if value is None]
    # The note is a shell comment, so that the line can be pasted.
    note = f"  # in a copy of {name}.py without {', '.join(unset)}" if unset else ""
    return " ".join([*parts, f"--config.seed={run.config.seed}"]) + note


def page(runs: Sequence[Run], baseline: Run, splits: Sequence[str]) -> str:
    """Returns the tables of all splits and the commands, as Markdown."""
    groups = group(runs, baseline)
    # If a run has votes in its targets, its dataset's name includes their share, which isn't true of the other rows.
    named = next((run for run in [baseline, *runs] if not run.trains_on_votes()), baseline)
    lines = []
    for split in splits:
        evaluation = named.evaluations[split]
        fingerprint = evaluation["dataset_fingerprint"]
        official = f" ({_OFFICIAL[split]})" if fingerprint == _FER2013 else ""
        lines += [
            f"Accuracy in percent on {split}{official} of {evaluation['dataset']} (`{fingerprint}`), "
            f"{evaluation['num_examples']:,} images:",
            "",
            *table(groups, split),
            "",
        ]
    lines += ["The first seed of each row; another takes its own `--config.seed` and `--workdir`:", "", "```bash"]
    lines += [command(members[0]) for members in groups]
    return "\n".join([*lines, "```"])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the workdir of a finished run")
    parser.add_argument("--split", choices=SPLITS, help="this split alone (both if unset)")
    parser.add_argument("--baseline", metavar="RUN", help="a run of the baseline (the first run if unset)")
    arguments = parser.parse_args(argv)
    splits = [arguments.split] if arguments.split else list(SPLITS)
    paths = [arguments.baseline] if arguments.baseline else []
    try:
        runs = read_runs([*paths, *arguments.runs], splits)
        print(page(runs, runs[0], splits))
    except UserError as error:
        for line in str(error).splitlines():
            print(f"scripts.results: {line}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
