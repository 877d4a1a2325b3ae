"""Evaluates a checkpoint of a run, or a weights file, on splits of a dataset; writes and prints the report."""

import errno
import os
import re
from typing import NamedTuple

import jax
from ml_collections import config_dict

from fer_jax import config as config_lib
from fer_jax import parallel
from fer_jax.data.dataset import Dataset
from fer_jax.errors import UserError
from fer_jax.inference import metrics, weights
from fer_jax.inference.evaluation_data import load_other, load_own
from fer_jax.inference.evaluator import Evaluator
from fer_jax.inference.preprocessing import Preprocessing
from fer_jax.inference.reproduction import compare_with_training
from fer_jax.inference.trained_model import TrainedModel, make_predict, make_prepare, uses_ema
from fer_jax.models.resnet import ResNet
from fer_jax.system import processes
from fer_jax.system.signals import StopRequest
from fer_jax.system.terminal import Terminal
from fer_jax.workdir import report, selection
from fer_jax.workdir.paths import Workdir


class Evaluated(NamedTuple):
    """A network, the split that it was evaluated on, and the name of the report."""

    trained: TrainedModel
    dataset: Dataset
    split: str
    report_name: str


def evaluate(
    config: config_dict.ConfigDict | None,
    workdir: Workdir,
    *,
    data: str | None = None,
    split: str,
    checkpoint: str,
    strict: bool,
    stop: StopRequest,
) -> Evaluated:
    """Evaluates a checkpoint of the run in `workdir` on a split; prints its report and writes it to the workdir.

    Args:
      config: None for the run's own. Another one may differ in options that change no results, such as dataset.path.
        Its dataset.ferplus is the current path of FER+'s votes, for a run that was trained with them.
      data: the files to evaluate on; if None, those of the config's dataset.path, or else the run's own.
      split: 'validation' or 'test'. Other data whose files define no splits are evaluated as a whole.
      checkpoint: 'best', 'latest' or a step.
      strict: whether a validation accuracy that differs from the logged one beyond a few images is an error.

    Raises:
      UserError: there is no such run, checkpoint, data or split, or the config is that of another run.
      Stopped: a signal was received.
    """
    terminal = Terminal(is_primary=jax.process_index() == 0)
    with processes.agreeing_on_errors():
        own = config_lib.load(workdir.config)
        config_lib.check(own)
        if config is not None:
            config_lib.refuse_differences(
                config,
                own,
                workdir=workdir.path,
                advice="Leave --config out to use the run's own; only options that change no results may differ",
            )
    # Loaded before the data, since the checkpoint says which data the run was trained on.
    trained = TrainedModel.load(workdir, checkpoint)
    if config is not None:
        # These options say how to compute and where data are cached; they change no metrics.
        for section, key in (("dataset", "cache_dir"), ("dataset", "loader"), ("parallel", "mapper")):
            trained.config[section][key] = config[section][key]
        # The votes may have been moved since training; the dataset's fingerprint tells whether they are the same.
        if config.dataset.ferplus:
            trained.config.dataset.ferplus = config.dataset.ferplus
    with processes.agreeing_on_errors():
        asked = config.dataset if config is not None else None
        path = data or (asked.path if asked else None)
        if path is None and not (asked and asked.source == "embedded"):
            dataset = load_own(trained, f"the run in {workdir.path}", terminal)
        else:
            dataset = load_other(trained, path, split, asked or own.dataset, terminal)
        dataset.split(split)
    _agree_on(trained, dataset, terminal)
    with stop:
        report_checkpoint(
            trained,
            workdir,
            dataset,
            splits=[split],
            views=config_lib.report_views(own if config is None else config),
            selected_on=describe_selection(own, checkpoint),
            strict=strict,
            stop=stop,
            terminal=terminal,
        )
    return Evaluated(trained, dataset, split, _report_name(trained, dataset, split))


def evaluate_weights(
    path: str,
    workdir: Workdir | None,
    *,
    data: str | None,
    split: str,
    strict: bool,
    stop: StopRequest,
) -> Evaluated:
    """Evaluates a weights file on a split and prints the report; see `evaluate`.

    workdir: its report/ gets the report too, under the file's name; None to print the report only.
    """
    terminal = Terminal(is_primary=jax.process_index() == 0)
    # Outside of agreeing_on_errors, whose body must not communicate: putting weights on all devices does.
    path = weights.resolve(path, "--weights")
    trained = TrainedModel.load(path)
    with processes.agreeing_on_errors():
        if data is None:
            dataset = load_own(trained, f"the network in {path}", terminal)
        else:
            dataset = load_other(trained, data, split, trained.config.dataset, terminal)
        dataset.split(split)
        if workdir is not None and jax.process_index() == 0:
            workdir.path.mkdir(parents=True, exist_ok=True)
    _agree_on(trained, dataset, terminal)
    name = os.path.basename(path)
    with stop:
        report_checkpoint(
            trained,
            workdir,
            dataset,
            splits=[split],
            views=config_lib.report_views(trained.config),
            selected_on=f"{trained.metadata.get('selected_on', 'not known how it was selected')}; in {name}",
            weights_file=name,
            strict=strict,
            stop=stop,
            terminal=terminal,
        )
    return Evaluated(trained, dataset, split, _report_name(trained, dataset, split, name))


def describe_selection(config: config_dict.ConfigDict, checkpoint: str) -> str:
    """Returns the text that says, in reports and exported files, how a checkpoint of a run was selected."""
    by = f"validation {config.early_stopping.metric.replace('_', ' ')}"
    return by if checkpoint == "best" else f"not selected ({checkpoint})"


def _agree_on(trained: TrainedModel, dataset: Dataset, terminal: Terminal) -> None:
    # A run that is still training may have saved its next checkpoint between two processes' looking for the best one.
    processes.require_agreement(
        {
            "the dataset": f"{dataset.name} ({dataset.fingerprint})",
            "the checkpoint's step": trained.step,
            "the view": trained.preprocessing.view,
        }
    )
    terminal.say(f"Data set: {dataset.describe()}")


def report_checkpoint(
    trained: TrainedModel,
    workdir: Workdir | None,
    dataset: Dataset,
    *,
    splits: list[str],
    views: list[str],
    selects_view: bool = False,
    selected_on: str,
    strict: bool,
    stop: StopRequest,
    terminal: Terminal,
    weights_file: str | None = None,
) -> None:
    """Evaluates a checkpoint of the run in `workdir` on each of `splits`, and prints and writes their reports.

    If a validation accuracy on the same data was logged with the checkpoint, it is computed again and compared with it.
    Reports on other data than the run's have the dataset's name and fingerprint in their file names.

    workdir: None to write nothing. weights_file: the name of the weights file that the network was loaded from, if any;
    its reports have names of their own.

    views: names from `preprocessing.VIEWS`, reported beside the network's own view. selects_view: whether the view that
    is best on validation, by `early_stopping.metric`, becomes the network's own; `splits` then begin with validation.
    """
    # Compared by name: the same number of classes in another order would be evaluated without an error.
    if trained.class_names != dataset.class_names:
        raise UserError(
            f"{weights_file or f'the run in {workdir.path}'} tells {', '.join(trained.class_names)} apart, "
            f"{dataset.name} has {', '.join(dataset.class_names)}"
        )
    # A weights file that another program wrote may lack the metadata of a training run.
    logged = trained.metadata.get("validation")
    trained_view = (logged or {}).get("view", trained.preprocessing.view)
    views = list(dict.fromkeys([trained_view, trained.preprocessing.view, *views]))
    evaluator = make_evaluator(trained.config, trained.model, trained.preprocessing, stop, views)
    metric_sums = {}
    is_own = trained.metadata.get("dataset_fingerprint") == dataset.fingerprint
    if logged and is_own:
        metric_sums["validation"] = evaluator(trained.variables, dataset.split("validation"))
        compare_with_training(trained, metric_sums["validation"][trained_view], strict, terminal)
    elif strict:
        raise UserError(
            f"--strict compares the validation accuracy with the one logged with step {trained.step}, and there "
            f"is none {'with it' if is_own else f'on {dataset.name}'}; leave it out"
        )
    else:
        terminal.say(f"Restored step {trained.step}.")
    if selects_view and len(views) > 1:
        # The metric that selected the checkpoint, so that the two choices don't disagree on which images count.
        metric = trained.config.early_stopping.metric
        scores = {view: metrics.selection_metrics(metric_sums["validation"][view])[metric] for view in views}
        # Of equally good views, max takes the first, which is the one used in training.
        trained = trained.with_view(max(scores, key=scores.get))
        if jax.process_index() == 0:
            with workdir.time_limit():
                selection.write_view(workdir, trained.preprocessing.view, metric, scores, step=trained.step)

    for split in splits:
        # The validation split may have been evaluated for the comparison already.
        if split not in metric_sums:
            metric_sums[split] = evaluator(trained.variables, dataset.split(split))
        own_view = trained.preprocessing.view
        evaluation = {
            "split": split,
            **metrics.summarize(metric_sums[split][own_view], trained.class_names),
            "view": own_view,
            # JAX sorts the keys of a dict; this restores the order in which the views were requested.
            "views": {view: metrics.summarize_shortly(metric_sums[split][view]) for view in views},
            "class_names": list(trained.class_names),
            "checkpoint_step": trained.step,
            "is_ema": uses_ema(trained.config, trained.metadata),
            "selected_on": selected_on,
            "dataset": dataset.name,
            "dataset_fingerprint": dataset.fingerprint,
            # For comparisons with runs on other training targets, whose dataset_fingerprint differs.
            "split_fingerprint": dataset.split(split).fingerprint,
        }
        if weights_file:
            evaluation["weights_file"] = weights_file
        # Printed before it is written, so that the result isn't lost if the workdir can't be written.
        terminal.say("\n" + report.table(evaluation))
        if workdir is not None and jax.process_index() == 0:
            _write(evaluation, workdir, _report_name(trained, dataset, split, weights_file), terminal)


def _report_name(trained: TrainedModel, dataset: Dataset, split: str, weights_file: str | None = None) -> str:
    """Returns the name of a report's files: the split, the weights file if any, and data that aren't the run's own."""

    def as_file_name(name: str) -> str:
        return re.sub(r"[^\w.-]+", "_", name.partition(",")[0])

    # The split alone names the report of the run's checkpoint, which a weights file must not overwrite.
    name = f"{split}_{as_file_name(weights_file.removesuffix(weights.SUFFIX))}" if weights_file else split
    if trained.metadata.get("dataset_fingerprint") == dataset.fingerprint:
        return name
    return f"{name}_{as_file_name(dataset.name)}_{dataset.fingerprint[:8]}"


def make_evaluator(
    config: config_dict.ConfigDict,
    model: ResNet,
    preprocessing: Preprocessing,
    stop: StopRequest,
    views: list[str] | None = None,
) -> Evaluator:
    """Returns an evaluator of a run's network on all devices; views: only the network's own if None."""
    return Evaluator(
        make_predict(model, preprocessing, views),
        parallel.make_mesh(),
        config.parallel.mapper,
        batch_size=config.batch_size,
        on_device=config.dataset.loader == "device",
        prepare=make_prepare(model),
        stop=stop,
    )


def _write(evaluation: dict, workdir: Workdir, name: str, terminal: Terminal) -> None:
    try:
        with workdir.time_limit():
            report.write_evaluation(evaluation, workdir.report, name)
    except OSError as error:
        # Another user's run can be evaluated without write permission; a full disk is still an error.
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        terminal.warn(f"the report is not written: {error}")
