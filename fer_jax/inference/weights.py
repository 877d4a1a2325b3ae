"""Weights files: a trained network in one file that any program can read, without pickle.

The format is safetensors (https://github.com/huggingface/safetensors). A tensor is named by its path in the variables,
`params.stem_conv.kernel`; kernels are HWIO. Everything else that the network needs is one JSON object in the file's
metadata, under the key `fer_jax`.
"""

import importlib.resources
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from fer_jax.config import expand_path
from fer_jax.errors import UserError, naming

SUFFIX = ".safetensors"
DTYPES = ("float32", "float16", "bfloat16")
# The name of the weights file that is installed with the package; the face detector's file is beside it.
PRETRAINED = "pretrained"
PRETRAINED_FILE = f"fer2013{SUFFIX}"
_DETECTOR = "blazeface_full_range.safetensors"
_KEY = "fer_jax"
_FORMAT = 1


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(size) is int and size > 0 for size in value)


def _is_validation(value: Any) -> bool:
    accuracy = value.get("accuracy") if isinstance(value, dict) else None
    return value is None or (type(accuracy) in (int, float) and 0 <= accuracy <= 1)


# The metadata that are needed to make a network of the tensors.
_NEEDED = {
    "config": ("an object", lambda value: isinstance(value, dict)),
    "class_names": (
        "a list of names, each there once",
        lambda value: (
            isinstance(value, list)
            and value
            and all(isinstance(name, str) for name in value)
            and len(set(value)) == len(value)
        ),
    ),
    "preprocessing": (
        "an object with an image_shape [height, width, channels]",
        lambda value: isinstance(value, dict) and _is_shape(value.get("image_shape")),
    ),
    "step": ("a whole number, at least 0", lambda value: type(value) is int and value >= 0),
}
# The metadata that another program's file may omit.
_OPTIONAL = {
    "validation": ("null or an object with an accuracy of 0 to 1", _is_validation),
    "computation": ("null or an object", lambda value: value is None or isinstance(value, dict)),
}


def resolve(
    source: str | os.PathLike | None, option: str = "the network's path", folder: pathlib.Path | None = None
) -> str:
    """Returns `source` with ~ and variables expanded, or the packaged weights file's path for 'pretrained' and None.

    option: names `source` in errors. folder: contains the packaged file; fer_jax.pretrained by default. Raises
    UserError if the packaged file is missing, and as `expand_path` does.
    """
    # A file or folder that is named 'pretrained' takes precedence over the packaged file.
    if source is not None and (os.fspath(source) != PRETRAINED or os.path.exists(source)):
        return expand_path(os.fspath(source), option)
    if folder is None:
        folder = pathlib.Path(str(importlib.resources.files("fer_jax.pretrained")))
    packaged = folder / PRETRAINED_FILE
    if not packaged.exists():
        raise UserError(
            f"this installation of fer_jax has no pretrained weights: {folder} holds no {PRETRAINED_FILE}; name a file "
            "of your own, which --mode=export writes"
        )
    return str(packaged)


def read_detector() -> dict[str, Any]:
    """Returns the parameters of the packaged face detector, `models.blazeface.BlazeFace`, in float32."""
    content = importlib.resources.files("fer_jax.pretrained").joinpath(_DETECTOR).read_bytes()
    tensors = {name: value.astype(np.float32) for name, value in safetensors.numpy.load(content).items()}
    return traverse_util.unflatten_dict(tensors, sep=".")


def write(path: str | os.PathLike, variables: Mapping[str, Any], metadata: Mapping[str, Any], *, dtype: str) -> None:
    """Writes a network, whole or not at all.

    metadata: JSON-serialisable. dtype: that of the kernels, one of DTYPES; scales, biases and statistics, which are few
    and may be large, stay float32. Raises UserError if the dtype is another one or can't hold a value, and OSError or
    StorageError if the file can't be written.
    """
    if dtype not in DTYPES:
        raise UserError(f"weights are stored as {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, not as {dtype}")
    tensors = {}
    for name, value in traverse_util.flatten_dict(jax.device_get(variables), sep=".").items():
        # 65,504 is the largest float16: larger values would silently become infinite.
        with np.errstate(over="ignore"):
            tensors[name] = np.asarray(value, dtype if value.ndim > 1 else "float32")
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"{name} holds a value that is not finite in {tensors[name].dtype}")
    path = pathlib.Path(path)
    # Renamed into place, so that a crash never leaves half a file.
    partial = path.with_name(path.name + ".partial")
    document = json.dumps({"format": _FORMAT, **metadata}, allow_nan=False)
    content = safetensors.numpy.save(tensors, metadata={_KEY: document})
    try:
        # Not written by safetensors, because its errors don't name the file.
        with naming(partial):
            partial.write_bytes(content)
        partial.replace(path)
    finally:
        # If the disk is full, no partial file is left on it.
        partial.unlink(missing_ok=True)


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the tensors by name, as they are stored, and the metadata.

    Raises UserError if the file is missing, cut off or damaged, was not written by `write`, or has metadata that no
    network can be made of.
    """
    tensors, stored = read_any(path)
    return tensors, describe(stored, path)


def read_any(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the tensors and the metadata of any program's safetensors file.

    Raises UserError if the file is missing, cut off, damaged, or not a safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (it is no mapping)
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        # PyTorch's own files are pickles, which run code when they are read.
        is_torch = os.path.splitext(path)[1] in (".pt", ".pth", ".bin")
        advice = "; safetensors.torch.save_file(state_dict, FILE) makes one of PyTorch's" if is_torch else ""
        raise UserError(f"{path} is not a whole safetensors file: {error}{advice}") from None


def describe(stored: Mapping[str, str], path: str | os.PathLike) -> dict[str, Any]:
    """Returns the metadata of a weights file of fer_jax, without the format.

    Raises UserError if another program wrote the file, or its metadata are invalid.
    """
    document = stored.get(_KEY)
    if document is None:
        raise UserError(f"{path} is a safetensors file of another program: its metadata lack {_KEY!r}")
    try:
        metadata = json.loads(document)
    except ValueError as error:
        raise UserError(f"{path}: its metadata under {_KEY!r} are no JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: its metadata under {_KEY!r} are no object but {document[:50]}")
    # The format is checked first, since another one may need other keys.
    version = metadata.pop("format", None)
    if version is None:
        raise UserError(f"{path}: its metadata under {_KEY!r} lack format, which says how to read them")
    if version != _FORMAT:
        raise UserError(f"{path} has format {version}; this version of fer_jax reads format {_FORMAT}")
    for key, (wanted, holds) in (_NEEDED | _OPTIONAL).items():
        if key in _NEEDED and key not in metadata:
            raise UserError(f"{path}: its metadata under {_KEY!r} lack {key}")
        if key in metadata and not holds(metadata[key]):
            raise UserError(f"{path}: {key} of its metadata is {str(metadata[key])[:50]}; it must be {wanted}")
    return metadata


def fill(
    abstract: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    source: str | os.PathLike,
    whose: str = "its config",
) -> dict:
    """Returns the tensors as the variables of a network.

    abstract: the variables' shapes, dtypes and shardings. source, whose: the file, and the config that describes the
    network, for the UserError that is raised if a tensor is missing, superfluous or of another shape.
    """
    # Names are compared first: otherwise a network of another depth would be reported by some tensor's shape.
    wanted = traverse_util.flatten_dict(abstract, sep=".")
    for name in sorted(wanted.keys() ^ tensors.keys()):
        where = "lacks" if name in wanted else "has one tensor too many,"
        raise UserError(f"{source} holds another network than {whose} describes: it {where} {name}")
    filled = {}
    for name, like in wanted.items():
        shape = tensors[name].shape
        if shape != like.shape:
            raise UserError(f"{source}: {name} is {list(shape)}, where {whose} asks {list(like.shape)}")
        # Two bytes per value save space in the file; parameters are float32.
        filled[name] = jax.device_put(tensors[name].astype(like.dtype), like.sharding)
    return traverse_util.unflatten_dict(filled, sep=".")
