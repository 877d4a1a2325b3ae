"""Chooses a run's dataset: files named in the config, files in the usual places, or the embedded dataset."""

import os
from collections.abc import Mapping
from typing import Any

from fer_jax import machine
from fer_jax.config import expand_path
from fer_jax.data import duplicates, embedded, ferplus, files
from fer_jax.data.dataset import CLASS_NAMES, Dataset
from fer_jax.errors import UserError
from fer_jax.system.terminal import SILENT, Terminal

DEFAULT_PATHS = ("data/fer2013.csv", "data/icml_face_data.csv")


def load_dataset(options: Mapping[str, Any], terminal: Terminal = SILENT) -> Dataset:
    """Returns the dataset for training that a `config.dataset` asks for; its name describes it.

    It is the dataset of `load_published`. If the files have no validation split, a part of train becomes one (see
    `files.with_validation`). With `ferplus`, FER+'s labels are joined (see `ferplus.join`).

    Raises UserError as these three functions do, and as `ferplus.read` does.
    """
    dataset = files.with_validation(load_published(options, terminal), options["split_seed"], terminal)
    return with_votes(dataset, options, terminal) if options["ferplus"] else dataset


def with_votes(dataset: Dataset, options: Mapping[str, Any], terminal: Terminal = SILENT) -> Dataset:
    """Returns `dataset` with FER+'s labels, as a `config.dataset` asks for them (see `ferplus.join`)."""
    dataset, said = ferplus.join(
        dataset, load_votes(options), task=options["ferplus_task"], target_weight=options["ferplus_target_weight"]
    )
    terminal.say(said)
    # If an image of train is left out, its duplicate in another split is no longer a copy.
    return duplicates.with_copies_marked(dataset)


def load_votes(options: Mapping[str, Any]) -> ferplus.FerPlus:
    """Returns FER+'s votes from the file that a `config.dataset` names."""
    return ferplus.read(expand_path(options["ferplus"], "config.dataset.ferplus"))


def load_published(options: Mapping[str, Any], terminal: Terminal = SILENT) -> Dataset:
    """Returns the dataset that a `config.dataset` asks for, with the splits that its files name.

    source 'fer2013' reads files: `path` or, if it is unset, the first of DEFAULT_PATHS (relative to the working
    directory) that exists. 'embedded' is the dataset that needs no files; 'auto' is 'fer2013' if there is a path or
    such a file, and otherwise 'embedded'.

    Raises UserError if 'fer2013' finds no file, and as `load_files` does.
    """
    path = options["path"]
    if options["source"] != "embedded" and not path:
        path = next((default for default in DEFAULT_PATHS if os.path.exists(default)), None)
    if path:
        return load_files(path, options, terminal)
    if options["source"] == "fer2013":
        raise UserError(
            f"dataset.source 'fer2013' finds no file: neither {' nor '.join(DEFAULT_PATHS)} is in {os.getcwd()}; put"
            " one there or set the path of a FER-2013 csv or folder"
        )
    if options["classes"] == "folders":
        raise UserError(
            "config.dataset.classes is folders, and there are none: config.dataset.path names a folder of images"
        )
    # Every run gets the same faces, because the seed of a run must not change the data that it is evaluated on.
    return duplicates.with_copies_marked(embedded.make(seed=0, image_size=options["image_size"]))


def load_files(
    path: str,
    options: Mapping[str, Any],
    terminal: Terminal = SILENT,
    *,
    class_names: tuple[str, ...] | None = None,
    resize: bool | None = None,
) -> Dataset:
    """Returns the dataset of the files at `path` with the splits that they name (see `files.read_published`).

    Images that are also in train are marked in the other splits (see `duplicates.with_copies_marked`).

    options: a `config.dataset`. class_names, resize: if given, override those of `options`.
    """
    from fer_jax.data import prepared  # imports TensorFlow, which the embedded dataset doesn't need

    if class_names is None and options["classes"] == "fer2013":
        class_names = CLASS_NAMES
    form = files.Form(class_names, options["image_size"], options["resize"] if resize is None else resize)
    cache_dir = options["cache_dir"]
    path = expand_path(path, "the path of the data")
    try:
        cache_dir = expand_path(cache_dir, "config.dataset.cache_dir") if cache_dir else machine.user_cache("prepared")
    except OSError as error:
        terminal.warn(f"the prepared data set is not kept, so the files are read anew each time: {error}")
        dataset = files.read_published(path, terminal, form)
    else:
        dataset = prepared.load(path, cache_dir, form, terminal)
    # Marked here and where a validation split is held out: every dataset of files that is evaluated comes from these.
    return duplicates.with_copies_marked(dataset)
