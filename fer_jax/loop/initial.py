"""Reads the weights that training starts from, if config.model.init names a file of them."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import config_dict

from fer_jax import config as config_lib
from fer_jax.errors import UserError
from fer_jax.inference import torch_names, weights
from fer_jax.inference.trained_model import stored_description
from fer_jax.recipe.state import TrainState
from fer_jax.system import processes
from fer_jax.system.terminal import Terminal

# Kernels whose shapes may differ in a file that still fits the run: they depend on the images and the classes.
_FIRST, _HEAD = "params.stem_conv.kernel", "params.head.kernel"
# Options of how a network is computed or initialised, which don't make it another network.
_NOT_OF_A_NETWORK = {"init", "dtype", "conv", "remat", "zero_init", "sync_batch_norm"}


def read_initial(
    config: config_dict.ConfigDict, run_metadata: Mapping[str, Any], abstract_state: TrainState, terminal: Terminal
) -> dict | None:
    """Returns the variables of `config.model.init`, float32 {'params', 'batch_stats'}, or None if it is unset.

    The file is one of our weights files, or one with the tensor names of torchvision and timm. Layers that it doesn't
    fit are left out: the head if the file's classes are not the run's and, of the second kind of file, a stem with
    another kernel size. All processes must call it at the same point.

    Args:
      run_metadata: the run's metadata, with its class_names and preprocessing.
      abstract_state: the shapes and dtypes of the run's state.

    Raises:
      UserError: the file can't be read, or holds a network of other layers or other preprocessing than the run's, or
        the processes read different files.
    """
    if config.model.init is None:
        return None
    with processes.agreeing_on_errors():
        path = weights.resolve(config.model.init, "config.model.init")
        tensors, stored = weights.read_any(path)
        # Shapes without shardings: only the state that `Program.first_state` makes of them is put on all devices.
        wanted = {
            kind: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), getattr(abstract_state, kind))
            for kind in ("params", "batch_stats")
        }
        if torch_names.is_torch(tensors):
            initial, taken = _of_torch(path, tensors, stored, wanted, run_metadata["class_names"])
        else:
            initial, taken = _of_ours(path, tensors, stored, wanted, config, run_metadata)
        # Compared by content: a relative path, or one with a variable, may be another file on another machine.
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    processes.require_agreement({"the content of config.model.init": digest})
    terminal.say(f"Starts from {path}: {taken}.")
    return initial


def _of_ours(
    path: str,
    tensors: Mapping[str, np.ndarray],
    stored: Mapping[str, str],
    wanted: Mapping[str, Mapping],
    config: config_dict.ConfigDict,
    run_metadata: Mapping[str, Any],
) -> tuple[dict, str]:
    """Returns the variables from one of our weights files, and a description of the layers that they are of."""
    metadata = weights.describe(stored, path)
    stored_config, preprocessing = stored_description(path, metadata)
    _refuse_other_preprocessing(path, preprocessing.to_metadata(), run_metadata["preprocessing"])
    # `config.model.depth is 50 there and 18 here` says more than the name of a missing tensor.
    different = _describe_differences(config, stored_config)
    there, here = metadata["class_names"], run_metadata["class_names"]
    # The head is left out even if the number of classes is equal: other names or another order mean other outputs.
    left_out = {} if there == here else {"head": _describe_classes(len(there), len(here))}
    try:
        initial = _fill(path, tensors, wanted, left_out)
    except UserError as error:
        raise UserError(f"{error}{f' ({different})' if different else ''}") from None
    return initial, f"{_describe_taken(left_out)}{f'; {different}' if different else ''}"


def _of_torch(
    path: str,
    tensors: Mapping[str, np.ndarray],
    stored: Mapping[str, str],
    wanted: Mapping[str, Mapping],
    class_names: Sequence[str],
) -> tuple[dict, str]:
    """Returns the variables from a file with torchvision's names, and a description of the layers that they are of."""
    tensors = torch_names.from_torch(tensors, traverse_util.flatten_dict(wanted, sep="."))
    left_out, note = {}, ""
    kernel, window = tensors.get(_FIRST), wanted["params"]["stem_conv"]["kernel"].shape
    if kernel is not None and kernel.shape[:2] != window[:2]:
        # The norm is left out too, since it was trained on that convolution's outputs.
        left_out |= dict.fromkeys(("stem_conv", "stem_norm"), f"{_window(kernel.shape)} there, {_window(window)} here")
    elif kernel is not None and window[2] == 1 < kernel.shape[2]:
        # A grey image is a colour image with three equal channels, for which the summed kernel has the same output.
        tensors[_FIRST] = kernel.sum(axis=2, keepdims=True, dtype=np.float32)
        note = f"; the first kernel is the sum over its {kernel.shape[2]} colours"
    head = tensors.get(_HEAD)
    # Only files exported by fer_jax name their classes.
    named = _class_names(path, stored) or list(class_names)
    if head is None or head.shape[-1] != len(class_names) or named != list(class_names):
        left_out["head"] = _describe_classes(0 if head is None else head.shape[-1], len(class_names))
    try:
        initial = _fill(path, tensors, wanted, left_out)
    except UserError as error:
        raise UserError(f"{error}; by its names it is a ResNet of torchvision or timm, but not this run's") from None
    return initial, f"{_describe_taken(left_out)}, by the names of torchvision{note}"


def _class_names(path: str, stored: Mapping[str, str]) -> Any:
    """Returns the class names in the metadata of a file with torchvision's names, or None if it has none."""
    try:
        return json.loads(stored.get("class_names", "null"))
    except ValueError as error:
        raise UserError(
            f"{path}: class_names of its metadata is no JSON ({error}); a list of names would be right, such as "
            '["happy", "sad"], or no class_names at all'
        ) from None


def _fill(path: str, tensors: Mapping[str, np.ndarray], wanted: Mapping, left_out: Collection[str]) -> dict:
    """Returns the variables of the layers that are not left out."""
    prefixes = tuple(f"{kind}.{layer}." for kind in wanted for layer in left_out)
    wanted = {
        kind: {name: layer for name, layer in layers.items() if name not in left_out} for kind, layers in wanted.items()
    }
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}
    return weights.fill(wanted, tensors, source=path, whose="config.model of this run")


def _window(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _describe_classes(there: int, here: int) -> str:
    return f"{there} classes there, {here} {'others ' if there == here else ''}here"


def _describe_taken(left_out: Mapping[str, str]) -> str:
    """Returns a description of the layers that are taken; left_out: {layer: why it is not taken}."""
    parts = [f"the {layer.partition('_')[0]} ({reason})" for layer, reason in left_out.items()]
    # A stem's convolution and norm are listed as one part.
    return f"all but {' and '.join(dict.fromkeys(parts))}" if parts else "all layers"


def _refuse_other_preprocessing(path: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    # These may differ: a network can be shown any part of an image, whatever parts it was trained on.
    free = ("crop", "view")
    here, there = ({key: value for key, value in stored.items() if key not in free} for stored in (here, there))
    different = config_lib.differences(here, there)
    if not different:
        return
    listed = ", ".join(f"{key} is {theirs} there and {ours} here" for key, (ours, theirs) in different.items())
    advice = ""
    # The only difference that options can remove.
    if "image_shape" in different:
        advice = f": --config.dataset.image_size={there['image_shape'][0]} --config.dataset.resize=True would be right"
    raise UserError(f"{path} was trained on images of another preprocessing: {listed}{advice}")


def _describe_differences(config: config_dict.ConfigDict, stored: config_dict.ConfigDict) -> str:
    """Returns a description of how the two networks differ; '' if they don't."""
    different = config_lib.differences(config.model, stored.model)
    return ", ".join(
        f"config.model.{key} is {theirs} there and {ours} here"
        for key, (ours, theirs) in different.items()
        if key not in _NOT_OF_A_NETWORK
    )
