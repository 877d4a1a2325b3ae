"""Loads the data that a trained network is evaluated on: its own, wherever they are now, or others."""

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from fer_jax.config import expand_path
from fer_jax.data import ferplus, files
from fer_jax.data.dataset import UNSPLIT, Dataset
from fer_jax.data.load import load_dataset, load_files, with_votes
from fer_jax.errors import UserError
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.system.terminal import Terminal

_EIGHT = (
    "a network that tells FER+'s eight classes apart needs FER-2013 in its official order, such as fer2013.csv, and "
    "FER+'s votes on it"
)


def load_own(trained: TrainedModel, source: str, terminal: Terminal) -> Dataset:
    """Loads exactly the data that a network was trained on; raises UserError if they can't be found.

    source: the network's origin for error messages, such as 'the run in runs/mine'.
    """
    stored, options = trained.metadata, trained.config.dataset.to_dict()
    if not {"dataset", "dataset_fingerprint"} <= stored.keys():
        raise UserError(f"{source} does not say what it was trained on: name the data by --data")
    # Version 0.1 did not store the path of its data.
    if "dataset_path" in stored:
        path = stored["dataset_path"]
        options |= {"source": "fer2013" if path else "embedded", "path": path}
    # The embedded dataset has no votes, so it can't be the one that the network was trained on.
    elif _trains_on_votes(trained.config.dataset):
        options["source"] = "fer2013"
    trained_on = f"{source} was trained on {stored['dataset']} ({stored['dataset_fingerprint']})"
    try:
        dataset = load_dataset({**options, "ferplus": None}, terminal)
    except UserError as error:
        raise UserError(f"{error}; {trained_on}: say by --data where it is now") from None
    dataset = _with_votes(dataset, trained.config.dataset, terminal)
    if dataset.fingerprint != stored["dataset_fingerprint"]:
        raise UserError(
            f"{trained_on}; what is found now{f' at {dataset.path}' if dataset.path else ''} is {dataset.name} "
            f"({dataset.fingerprint}): say by --data where the run's data, or others to evaluate on, are"
        )
    return dataset


def load_other(
    trained: TrainedModel, path: str | None, split: str, options: Mapping[str, Any], terminal: Terminal
) -> Dataset:
    """Loads data in the form that a network takes, from `path` or, if it is None, the embedded dataset.

    If the data are the run's own, its dataset is returned. FER+'s votes are joined if the network was trained with them
    and the data are FER-2013 in its official order. Raises UserError if a network of FER+'s eight classes is given
    other data of FER-2013's seven.
    """
    own = trained.config.dataset
    options = {**options, "classes": own.classes, "image_size": own.image_size, "split_seed": own.split_seed}
    dataset = load_dataset(options, terminal) if path is None else _load_at(trained, path, split, options, terminal)
    if own.ferplus_task != "none" and dataset.class_names != trained.class_names:
        has = ferplus.complaint_about_rows(dataset) or f"{dataset.name} has {', '.join(dataset.class_names)}"
        raise UserError(f"{_EIGHT}; {has}")
    return dataset


def _load_at(trained: TrainedModel, path: str, split: str, options: Mapping[str, Any], terminal: Terminal) -> Dataset:
    own = trained.config.dataset
    # Images of any size are resized, since only the network's predictions for them are of interest.
    try:
        published = load_files(path, options, terminal, class_names=trained.class_names, resize=True)
    except UserError as error:
        # A folder of FER+'s classes is read, but not one of FER-2013's: its images can't be joined with the votes.
        if own.ferplus_task != "none" and os.path.isdir(expand_path(path, "the path of the data")):
            raise UserError(f"{error}; {_EIGHT}, or a folder of its own classes") from None
        raise
    # A test set alone can't be the data that the network was trained on.
    if {"train", UNSPLIT} & published.splits.keys():
        as_train = files.all_as(published, "train")
        try:
            # They may be the run's own data, moved. Another hold-out would contain images that the run was trained on.
            as_trained_on = files.with_validation(as_train, own.split_seed)
        except UserError:
            # There are too few images to hold any out, so no run was trained on them.
            return files.all_as(published, split)
        try:
            as_trained_on = _with_votes(as_trained_on, own, terminal)
        except UserError as error:
            # Votes that are only a share of the training target don't change the evaluation, so they may be missing.
            if own.ferplus_task != "none":
                raise
            terminal.warn(f"{published.name} is evaluated as other data, though it may be what was trained on: {error}")
        is_own = as_trained_on.fingerprint == trained.metadata.get("dataset_fingerprint")
        # Joined votes may have changed the classes to FER+'s, which the files themselves don't have.
        if is_own or as_trained_on.class_names != published.class_names:
            return as_trained_on
    return files.all_as(published, split)


def _trains_on_votes(own: config_dict.ConfigDict) -> bool:
    """Returns whether a `config.dataset` uses FER+'s votes in any way."""
    return own.ferplus_task != "none" or own.ferplus_target_weight > 0


def _with_votes(dataset: Dataset, own: config_dict.ConfigDict, terminal: Terminal) -> Dataset:
    """Returns `dataset` with the votes of a `config.dataset`; unchanged if it has none, or the data aren't FER-2013."""
    if not _trains_on_votes(own) or ferplus.complaint_about_rows(dataset):
        return dataset
    return with_votes(dataset, {**own.to_dict(), "ferplus": _find_votes(own.ferplus, dataset.path)}, terminal)


def _find_votes(path: str, data: str) -> str:
    """Returns the path of FER+'s votes: `path`, which is the config's, or a file of the same name beside the data."""
    # A weights file stores only the name, and the votes may have been moved together with the data.
    path = expand_path(path, "config.dataset.ferplus")
    beside = os.path.join(data if os.path.isdir(data) else os.path.dirname(data), os.path.basename(path))
    for found in (path, beside):
        if os.path.exists(found):
            return found
    raise UserError(
        f"{path}: FER+'s votes, with which the network was trained, are not there, nor are they beside the data, "
        f"{beside}; put them at one of the two or, of a run, name them by its --config with "
        "--config.dataset.ferplus=PATH"
    )
