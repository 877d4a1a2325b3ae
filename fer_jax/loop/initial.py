"""The weights that training starts from where they are those of a file (config.model.init)."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import config_dict

from fer_jax import config as config_lib
from fer_jax.errors import UserError
from fer_jax.inference import weights
from fer_jax.inference.trained_model import stored_description
from fer_jax.recipe.state import TrainState
from fer_jax.system import processes
from fer_jax.system.terminal import Terminal

# The layer whose outputs are the classes.
_HEAD = "params.head."
# How a network is computed, and how it was first drawn, don't tell it from another.
_NOT_OF_A_NETWORK = {"init", "dtype", "conv", "remat", "zero_init", "sync_batch_norm"}


def read_initial(
    config: config_dict.ConfigDict, run_metadata: Mapping[str, Any], abstract_state: TrainState, terminal: Terminal
) -> dict | None:
    """Returns the variables of `config.model.init`, float32 {'params', 'batch_stats'}, or None where it is unset.

    Where the file's classes are not the run's, by name and order, the head is left out. All processes must call it at
    the same point.

    Args:
      run_metadata: what is stored of the run, with its class_names and preprocessing.
      abstract_state: the shapes and dtypes of the run's state.

    Raises:
      UserError: the file can't be read, or holds a network of other layers or other preprocessing than the run's, or
        the processes read different files.
    """
    if config.model.init is None:
        return None
    with processes.agreeing_on_errors():
        path = os.fspath(weights.resolve(config_lib.expand_path(config.model.init, "config.model.init")))
        tensors, metadata = weights.read(path)
        stored_config, preprocessing = stored_description(path, metadata)
        _refuse_other_preprocessing(path, preprocessing.to_metadata(), run_metadata["preprocessing"])
        # A tensor that is missing says less than `config.model.depth is 50 there and 18 here`.
        different = _describe_differences(config, stored_config)
        # Shapes without shardings: only what `Program.first_state` makes of them goes to all devices.
        wanted = {
            kind: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), getattr(abstract_state, kind))
            for kind in ("params", "batch_stats")
        }
        there, here = metadata["class_names"], run_metadata["class_names"]
        if there != here:
            # Of as many classes too: another name or order is another meaning.
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEAD)}
            del wanted["params"]["head"]
        try:
            initial = weights.fill(wanted, tensors, source=path, whose="config.model of this run")
        except UserError as error:
            raise UserError(f"{error}{f' ({different})' if different else ''}") from None
        # By content: a relative path, or one with a variable, may be another file on another machine.
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    processes.require_agreement({"the content of config.model.init": digest})
    others = "others " if len(there) == len(here) else ""
    classes = f"{len(there)} classes there, {len(here)} {others}here"
    parts = "all layers" if there == here else f"all but the head ({classes})"
    terminal.say(f"Starts from {path}: {parts}{f'; {different}' if different else ''}.")
    return initial


def _refuse_other_preprocessing(path: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    # A network is shown any part of an image, whatever parts it was trained on.
    free = ("crop", "view")
    here, there = ({key: value for key, value in stored.items() if key not in free} for stored in (here, there))
    different = config_lib.differences(here, there)
    if not different:
        return
    listed = ", ".join(f"{key} is {theirs} there and {ours} here" for key, (ours, theirs) in different.items())
    advice = ""
    # The one difference that two options mend.
    if "image_shape" in different:
        advice = f": --config.dataset.image_size={there['image_shape'][0]} --config.dataset.resize=True would be right"
    raise UserError(f"{path} was trained on images of another preprocessing: {listed}{advice}")


def _describe_differences(config: config_dict.ConfigDict, stored: config_dict.ConfigDict) -> str:
    """Returns what tells the two networks apart, in words; '' if nothing does."""
    different = config_lib.differences(config.model, stored.model)
    return ", ".join(
        f"config.model.{key} is {theirs} there and {ours} here"
        for key, (ours, theirs) in different.items()
        if key not in _NOT_OF_A_NETWORK
    )
