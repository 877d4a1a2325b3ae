"""The data that a trained network is evaluated on: its own, wherever they are now, or others."""

from collections.abc import Mapping
from typing import Any

from fer_jax.data import files
from fer_jax.data.dataset import UNSPLIT, Dataset
from fer_jax.data.load import load_dataset, load_files
from fer_jax.errors import UserError
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.system.terminal import Terminal


def load_own(trained: TrainedModel, source: str, terminal: Terminal) -> Dataset:
    """Loads the very data that a network was trained on, or raises UserError.

    source: where the network is from, as the error says it: 'the run in runs/mine'.
    """
    stored, options = trained.metadata, trained.config.dataset.to_dict()
    if not {"dataset", "dataset_fingerprint"} <= stored.keys():
        raise UserError(f"{source} does not say what it was trained on: name the data by --data")
    # Version 0.1 did not store where its data were.
    if "dataset_path" in stored:
        path = stored["dataset_path"]
        options |= {"source": "fer2013" if path else "embedded", "path": path}
    trained_on = f"{source} was trained on {stored['dataset']} ({stored['dataset_fingerprint']})"
    try:
        dataset = load_dataset(options, terminal)
    except UserError as error:
        raise UserError(f"{error}; {trained_on}: say by --data where it is now") from None
    if dataset.fingerprint != stored["dataset_fingerprint"]:
        raise UserError(
            f"{trained_on}; what is found now{f' at {dataset.path}' if dataset.path else ''} is {dataset.name} "
            f"({dataset.fingerprint}): say by --data where the run's data, or others to evaluate on, are"
        )
    return dataset


def load_other(
    trained: TrainedModel, path: str | None, split: str, options: Mapping[str, Any], terminal: Terminal
) -> Dataset:
    """Loads data in the form that a network takes: at `path`, or the embedded set; the run's own where they are it."""
    own = trained.config.dataset
    form = {"classes": own.classes, "image_size": own.image_size, "split_seed": own.split_seed}
    if path is None:
        return load_dataset({**options, **form}, terminal)
    # Whatever their size: all that is to be known is what the network says of them.
    published = load_files(path, {**options, **form}, terminal, class_names=trained.class_names, resize=True)
    # A test set alone can't be what it was trained on.
    if {"train", UNSPLIT} & published.splits.keys():
        # Moved, say. Another hold-out would contain images that the run was trained on.
        as_trained_on = files.with_validation(published, own.split_seed)
        if as_trained_on.fingerprint == trained.metadata.get("dataset_fingerprint"):
            return as_trained_on
    return files.all_as(published, split)
