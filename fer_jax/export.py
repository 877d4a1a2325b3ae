"""Exports a checkpoint of a run to a file of its own, and stores what the network in that file reaches."""

import dataclasses
import os
import pathlib

import jax

from fer_jax.config import expand_path
from fer_jax.data.dataset import Dataset
from fer_jax.errors import UserError
from fer_jax.evaluate import describe_selection, make_evaluator
from fer_jax.inference import metrics, weights
from fer_jax.inference.evaluation_data import load_other, load_own
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.system.signals import StopRequest
from fer_jax.system.terminal import Terminal
from fer_jax.workdir import report
from fer_jax.workdir.paths import Workdir

# The figures of an evaluation that are stored in the file.
_STORED = ("accuracy", "accuracy_ci95", "num_examples", "without_copies", "loss", "macro_f1", "balanced_accuracy")


def export(
    workdir: Workdir,
    *,
    out: str | None,
    dtype: str,
    checkpoint: str,
    data: str | None,
    licence: str | None,
    stop: StopRequest,
) -> None:
    """Writes a checkpoint of the run in `workdir` to a weights file, whole or not at all.

    The run's checkpoint and the network that is read back from the file are both evaluated on the run's validation and
    test splits. The latter's figures are printed beside the former's and stored in the file's metadata, under
    `accuracies`. Where the run's data can't be found, nothing is evaluated, and a warning says so.

    Args:
      out: the file. dtype: of its kernels (see `weights.write`).
      checkpoint: 'best', 'latest' or a step.
      data: where the run's data are now, if not where they were.
      licence: a text that is stored in the metadata, or None.

    Raises:
      UserError: there is no such run, checkpoint or data, or `out` is missing, there already, or in no folder.
      OSError: the file can't be written.
      Stopped: a signal came.
    """
    terminal = Terminal(is_primary=True)
    # Processes would have to see each other's file; one device is enough for an evaluation.
    if jax.process_count() > 1:
        raise UserError(f"--mode=export is for one process; this run has {jax.process_count()}")
    # Before the network is loaded: an evaluation takes minutes, which a mistake needn't wait for.
    path = _check_out(out)
    trained = TrainedModel.load(workdir, checkpoint)
    dataset = _find_data(trained, workdir, data, terminal)
    extra = {"selected_on": describe_selection(trained.config, checkpoint)} | ({"licence": licence} if licence else {})
    # Under this name until it is evaluated: a file without accuracies is never taken for one with them.
    unevaluated = path.with_name(path.name + ".unevaluated")
    try:
        _with_metadata(trained, extra).save(unevaluated, dtype=dtype)
        written = TrainedModel.load(unevaluated)
        if dataset is not None:
            with stop:
                extra = {"accuracies": _compare(trained, written, workdir, path, dtype, dataset, stop, terminal)}
            # The kernels have this dtype's values already, so they are written as they were evaluated.
            _with_metadata(written, extra).save(unevaluated, dtype=dtype)
        unevaluated.replace(path)
    finally:
        unevaluated.unlink(missing_ok=True)
    size = path.stat().st_size / 1e6
    terminal.say(f"\n{path}: step {trained.step}, {len(trained.class_names)} classes, {dtype}, {size:.3g} MB")


def _check_out(out: str | None) -> pathlib.Path:
    """Returns the path of the file to be written; raises UserError before anything is computed for nothing."""
    if not out:
        raise UserError(f"--out is missing: which file? For example --out=net{weights.SUFFIX}")
    path = pathlib.Path(expand_path(out, "--out"))
    # By its name a file is told from a workdir when it is loaded.
    if path.suffix != weights.SUFFIX:
        raise UserError(f"--out is {out}; a weights file's name ends in {weights.SUFFIX}")
    # There may be no other copy of what would be written over.
    if path.exists():
        raise UserError(f"--out is {out}, which is there already; remove it or choose another name")
    if not path.parent.is_dir():
        raise UserError(f"--out is {out}, and there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--out is {out}, and {path.parent} can't be written")
    return path


def _find_data(trained: TrainedModel, workdir: Workdir, data: str | None, terminal: Terminal) -> Dataset | None:
    """Returns the data that the run was trained on, or None, with a warning, where they are nowhere."""
    own = trained.metadata["dataset_fingerprint"]
    if data is not None:
        dataset = load_other(trained, data, "test", trained.config.dataset, terminal)
        # Accuracies on anything else would be stored as if they were the run's.
        if dataset.fingerprint != own:
            raise UserError(
                f"the run in {workdir.path} was trained on {trained.metadata['dataset']} ({own}); at {data} is "
                f"{dataset.name} ({dataset.fingerprint}): --mode=evaluate --weights=FILE evaluates on other data"
            )
        return dataset
    # Weights are of use where the data are not, such as on the machine of a colleague.
    try:
        return load_own(trained, f"the run in {workdir.path}", terminal)
    except UserError as error:
        terminal.warn(f"nothing is evaluated and the file holds no accuracies: {'; '.join(str(error).splitlines())}")
        return None


def _with_metadata(trained: TrainedModel, extra: dict) -> TrainedModel:
    return dataclasses.replace(trained, metadata={**trained.metadata, **extra})


def _compare(
    trained: TrainedModel,
    written: TrainedModel,
    workdir: Workdir,
    path: pathlib.Path,
    dtype: str,
    dataset: Dataset,
    stop: StopRequest,
    terminal: Terminal,
) -> dict[str, dict]:
    """Evaluates both on validation and test, prints both accuracies, and returns the figures of `written` by split."""
    terminal.say(f"Data set: {dataset.describe()}")
    names = {f"step {trained.step} of {workdir.path}": trained, f"{path}, {dtype}": written}
    # Each is evaluated by its own description: the file's config and preprocessing are read back too.
    evaluators = [make_evaluator(one.config, one.model, one.preprocessing, stop) for one in names.values()]
    accuracies = {}
    for split in (split for split in ("validation", "test") if split in dataset.splits):
        terminal.say(f"\n{split} split, {len(dataset.split(split)):,} images")
        for (name, network), evaluator in zip(names.items(), evaluators, strict=True):
            metric_sums = evaluator(network.variables, dataset.split(split))[network.preprocessing.view]
            figures = metrics.summarize(metric_sums, network.class_names)
            terminal.say(f"  {name:<{max(map(len, names))}}  {report.describe_accuracy(figures)}")
        accuracies[split] = {key: figures[key] for key in _STORED if key in figures} | {
            "view": written.preprocessing.view,
            "dataset": dataset.name,
            "dataset_fingerprint": dataset.fingerprint,
        }
    return accuracies
