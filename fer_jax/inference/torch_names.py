"""The names that torchvision and timm give the tensors of a ResNet, and the order of their axes. Pure.

Their ResNets (https://github.com/pytorch/vision/blob/main/torchvision/models/resnet.py) are the same as fer_jax's,
version 1.5 with the same epsilon, so the tensors correspond one to one.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

_LAYERS = {
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    "shortcut_conv": "downsample.0",
    "shortcut_norm": "downsample.1",
    "head": "fc",
}
_TENSORS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# The number of batches that a norm has seen. The network doesn't use it, but transformers complains if it is missing.
_COUNTER = "num_batches_tracked"
# The order of the axes of convolution kernels, dense layers and vectors, by their number of axes.
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


def torch_name(name: str) -> str | None:
    """Returns torchvision's name of a variable such as 'params.stage1_block1.Conv_0.kernel'; None if it has none."""
    _, *layers, tensor = name.split(".")
    parts = [_layer(layer) for layer in layers]
    return None if None in parts else ".".join([*parts, _TENSORS[tensor]])


def _layer(name: str) -> str | None:
    if match := re.fullmatch(r"stage(\d+)_block(\d+)", name):
        return f"layer{match[1]}.{int(match[2]) - 1}"
    if match := re.fullmatch(r"(Conv|BatchNorm)_(\d+)", name):
        return f"{'conv' if match[1] == 'Conv' else 'bn'}{int(match[2]) + 1}"
    return _LAYERS.get(name)


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns a network's variables under torchvision's names, float32: kernels OIHW, the head [classes, features].

    Each norm also has its counter, int64 [].

    Raises KeyError if the network has squeeze-and-excitation, which torchvision's ResNets lack.
    """
    named = {}
    for name, value in traverse_util.flatten_dict(jax.device_get(variables), sep=".").items():
        theirs = torch_name(name)
        if theirs is None:
            raise KeyError(name)
        if name.endswith(".var"):
            named[theirs.replace("running_var", _COUNTER)] = np.zeros((), np.int64)
        named[theirs] = np.ascontiguousarray(np.float32(value).transpose(_TO_TORCH[value.ndim]))
    return named


def is_torch(names: Iterable[str]) -> bool:
    """Returns whether a file with tensors of these names holds a ResNet of torchvision or timm."""
    return any(name.startswith("layer1.0.") for name in names)


def from_torch(tensors: Mapping[str, np.ndarray], wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns torchvision's tensors under fer_jax's names, with fer_jax's order of the axes.

    wanted: the names of a network's variables. A tensor that matches none of them keeps its name.
    """
    ours = {torch_name(name): name for name in wanted}
    return {
        # A layer of another kind may have another number of axes, which are kept; it is refused by its name.
        ours.get(name, name): tensor.transpose(_FROM_TORCH.get(tensor.ndim, range(tensor.ndim)))
        for name, tensor in tensors.items()
        if not name.endswith(_COUNTER)
    }
