"""Exports a trained network to a file or folder in another program's format, and verifies it by running it."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np

from fer_jax.config import expand_path
from fer_jax.data.dataset import Dataset
from fer_jax.errors import UserError
from fer_jax.evaluate import describe_selection, make_evaluator
from fer_jax.exports import formats, function, verification
from fer_jax.inference import metrics, weights
from fer_jax.inference.evaluation_data import load_other, load_own
from fer_jax.inference.preprocessing import VIEWS
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.system.signals import StopRequest
from fer_jax.system.terminal import Terminal
from fer_jax.workdir import report
from fer_jax.workdir.paths import Workdir

# The metrics of an evaluation that are stored in a weights file.
_STORED = ("accuracy", "accuracy_ci95", "num_examples", "without_copies", "loss", "macro_f1", "balanced_accuracy")
# Images that an export is verified on. TensorFlow Lite runs them one by one; more would hardly change the result.
_NUM_IMAGES = 256


def export(
    source: Workdir | str,
    *,
    file_format: str = "safetensors",
    out: str | None,
    dtype: str,
    checkpoint: str | None,
    data: str | None,
    licence: str | None,
    ort: str | None = None,
    stop: StopRequest,
) -> None:
    """Writes a trained network in a format of `exports.formats.FORMATS`, whole or not at all.

    The export is then loaded by the program that it is for, and its probabilities on images of the run's validation
    split, or on random images if the run's data can't be found, are compared with the network's. If that program isn't
    installed, a warning says so.

    A weights file is also evaluated on validation and test beside the network that it was made from. Its metrics are
    stored in its metadata, under `accuracies`.

    Args:
      source: the workdir of a run; or a weights file, or 'pretrained'.
      out: the path of the file or, for some formats, the folder.
      dtype: the dtype in which the weights are stored.
      checkpoint: of a run: 'best' (also if None), 'latest' or a step.
      data: the path of the run's data, if they have been moved since training.
      licence: a text that is stored in the metadata, or None.
      ort: for the format 'web' only: a folder with onnxruntime-web's files, which are copied.

    Raises:
      UserError: there is no such network or data; `out` is missing, exists already, or is in no folder; the format
        can't hold the network; or the export's probabilities differ from the network's by more than rounding.
      OSError: `out` can't be written.
      Stopped: a signal was received.
    """
    terminal = Terminal(is_primary=True)
    # Several processes would have to see each other's files; one device is enough for an evaluation.
    if jax.process_count() > 1:
        raise UserError(f"an export is for one process; this run has {jax.process_count()}")
    # Mistakes are found before the network is loaded, since an evaluation takes minutes.
    kind = formats.find(file_format, dtype)
    module = kind.load()
    path = _check_out(out, file_format)
    if ort and file_format != "web":
        raise UserError("--ort goes with --format=web, whose page it is for")
    trained, name = _load(source, checkpoint)
    trained = _with_metadata(trained, {"licence": licence} if licence else {})
    if kind.one_picture:
        trained = _with_one_picture(trained, path, terminal)
    # A temporary name until the export is verified, so that a wrong export never has the final name.
    unverified = path.with_name(path.name + ".unverified")
    _remove(unverified)
    try:
        module.write(trained, unverified, dtype=dtype, **({"runtime": expand_path(ort, "--ort")} if ort else {}))
        missing = kind.missing_readers()
        if missing:
            # Only a warning: an export for another machine doesn't need its reader to be installed on this one.
            terminal.warn(
                f"{path} is not verified, since {' and '.join(missing)} to read it with are not installed: "
                f"pip install 'fer_jax[{kind.extra}]' brings them"
            )
        else:
            dataset = _find_data(trained, name, data, file_format, terminal)
            with stop:
                if file_format == "safetensors" and dataset is not None:
                    networks = {f"step {trained.step} of {name}": trained}
                    _store_accuracies(unverified, f"{path}, {dtype}", networks, dtype, dataset, stop, terminal)
                images, of = _choose_images(trained, dataset)
                _verify(module.read(unverified), images, of, trained, path, dtype, terminal)
        unverified.replace(path)
    finally:
        _remove(unverified)
    size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file()) / 1e6
    terminal.say(f"\n{path}: step {trained.step}, {len(trained.class_names)} classes, {dtype}, {size:.3g} MB")
    terminal.say(f"Its probabilities are of {', '.join(trained.class_names)}, in this order.")
    if kind.note:
        terminal.say(f"{kind.note}.")


def _check_out(out: str | None, file_format: str) -> pathlib.Path:
    """Returns the path of --out; raises UserError, before anything is computed, if it can't be written."""
    suffix = formats.FORMATS[file_format].suffix
    if not out:
        raise UserError(f"--out is missing: which {'file' if suffix else 'folder'}? For example --out=net{suffix}")
    path = pathlib.Path(expand_path(out, "--out"))
    # The suffix distinguishes a file from a workdir when it is loaded.
    if suffix and path.suffix != suffix:
        kind = "a weights file" if suffix == weights.SUFFIX else f"a file of --format={file_format}"
        raise UserError(f"--out is {out}; the name of {kind} ends in {suffix}")
    # Nothing is overwritten: there may be no other copy of it.
    if path.exists():
        raise UserError(f"--out is {out}, which is there already; remove it or choose another name")
    if not path.parent.is_dir():
        raise UserError(f"--out is {out}, and there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--out is {out}, and {path.parent} can't be written")
    return path


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _load(source: Workdir | str, checkpoint: str | None) -> tuple[TrainedModel, str]:
    """Returns the network and the path that it was loaded from."""
    if isinstance(source, Workdir):
        trained = TrainedModel.load(source, checkpoint or "best")
        selected_on = describe_selection(trained.config, checkpoint or "best")
        return _with_metadata(trained, {"selected_on": selected_on}), str(source.path)
    path = weights.resolve(source, "--weights")
    # selected_on is kept from the file's metadata, but not its accuracies: rounding to another dtype may change them.
    trained = TrainedModel.load(path)
    kept = {key: value for key, value in trained.metadata.items() if key != "accuracies"}
    return dataclasses.replace(trained, metadata=kept), path


def _with_metadata(trained: TrainedModel, extra: dict) -> TrainedModel:
    return dataclasses.replace(trained, metadata={**trained.metadata, **extra})


def _with_one_picture(trained: TrainedModel, path: pathlib.Path, terminal: Terminal) -> TrainedModel:
    """Returns the network with a view of one picture; warns if its own view has several."""
    own = trained.preprocessing.view
    if VIEWS[own].count == 1:
        return trained
    view = "centre_crop" if VIEWS[own].is_cropped else "whole"
    # A warning, since the reported accuracy is that of the network's own view.
    terminal.warn(f"{path} holds the view {view}, of one picture, where the network's own is {own}")
    return trained.with_view(view)


def _find_data(
    trained: TrainedModel, name: str, data: str | None, file_format: str, terminal: Terminal
) -> Dataset | None:
    """Returns the data that the network was trained on, or None, with a warning, if they can't be found."""
    own = trained.metadata.get("dataset_fingerprint")
    if data is not None:
        dataset = load_other(trained, data, "test", trained.config.dataset, terminal)
        # Accuracies on other data would be stored as if they were those on the run's data.
        if dataset.fingerprint != own:
            raise UserError(
                f"the network in {name} was trained on {trained.metadata.get('dataset', 'unknown data')} ({own}); at "
                f"{data} is {dataset.name} ({dataset.fingerprint}): --mode=evaluate --weights=FILE evaluates on other "
                "data"
            )
        return dataset
    # No error: weights are useful on machines without the data, such as that of a colleague.
    try:
        return load_own(trained, f"the network in {name}", terminal)
    except UserError as error:
        without = "nothing is evaluated, the file holds no accuracies, and " if file_format == "safetensors" else ""
        terminal.warn(f"{without}the export is verified on random images: {error}")
        return None


def _store_accuracies(
    written: pathlib.Path,
    name: str,
    networks: dict[str, TrainedModel],
    dtype: str,
    dataset: Dataset,
    stop: StopRequest,
    terminal: Terminal,
) -> None:
    """Evaluates the network of a weights file beside others, and stores the file's accuracies in its metadata."""
    loaded = TrainedModel.load(written)
    accuracies = _compare_accuracies({**networks, name: loaded}, dataset, stop, terminal)
    # The kernels already have values of this dtype, so saving them again stores exactly what was evaluated.
    _with_metadata(loaded, {"accuracies": accuracies}).save(written, dtype=dtype)


def _compare_accuracies(
    networks: dict[str, TrainedModel], dataset: Dataset, stop: StopRequest, terminal: Terminal
) -> dict[str, dict]:
    """Evaluates each on validation and test, prints the accuracies, and returns the last one's metrics by split."""
    terminal.say(f"Data set: {dataset.describe()}")
    # Each network is evaluated with its own config and preprocessing, so that those in the file are checked too.
    evaluators = [make_evaluator(one.config, one.model, one.preprocessing, stop) for one in networks.values()]
    accuracies = {}
    for split in (split for split in ("validation", "test") if split in dataset.splits):
        terminal.say(f"\n{split} split, {len(dataset.split(split)):,} images")
        for (name, network), evaluator in zip(networks.items(), evaluators, strict=True):
            metric_sums = evaluator(network.variables, dataset.split(split))[network.preprocessing.view]
            figures = metrics.summarize(metric_sums, network.class_names)
            terminal.say(f"  {name:<{max(map(len, networks))}}  {report.describe_accuracy(figures)}")
        accuracies[split] = {key: figures[key] for key in _STORED if key in figures} | {
            "view": network.preprocessing.view,
            "dataset": dataset.name,
            "dataset_fingerprint": dataset.fingerprint,
        }
    return accuracies


def _choose_images(trained: TrainedModel, dataset: Dataset | None) -> tuple[np.ndarray, str]:
    """Returns uint8 images to verify an export on, and a description of them."""
    if dataset is None:
        shape = (_NUM_IMAGES, *trained.preprocessing.image_shape)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), "random images"
    # No network was trained on the validation images, and none should be chosen by its results on test.
    images = dataset.split("validation").images
    # Evenly spaced over the split, since files may be sorted by class. At least two, because `compare` needs two.
    number = max(2, min(_NUM_IMAGES, len(images)))
    return images[np.linspace(0, len(images) - 1, number).astype(int)], "validation images"


def _verify(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    of: str,
    trained: TrainedModel,
    path: pathlib.Path,
    dtype: str,
    terminal: Terminal,
) -> None:
    """Prints how far `predict` agrees with the network; raises UserError if they differ by too much."""
    expected = function.predict(trained, images)["probabilities"]
    difference, equal, number = verification.compare(predict, images, expected)
    bound = verification.BOUNDS[dtype]
    result = f"probabilities differ by up to {difference:.2g}, {equal:.1%} of the predictions are equal"
    # Written with `not`, so that a difference of NaN is refused too.
    if not difference <= bound:
        raise UserError(
            f"{path} is not written, since it differs from the network: on {number} {of} {result}; {dtype} "
            f"explains a difference of {bound:g}"
        )
    terminal.say(f"\nRead back and run on {number} {of}: {result}")
