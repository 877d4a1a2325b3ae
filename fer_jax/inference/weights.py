"""Weights files: a trained network in one file that any program can read, without pickle.

The format is safetensors (https://github.com/huggingface/safetensors). A tensor is named by its path in the variables,
`params.stem_conv.kernel`; kernels are HWIO. Everything else that the network needs is one JSON object in the file's
metadata, under the key `fer_jax`.
"""

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

from fer_jax.errors import UserError

SUFFIX = ".safetensors"
DTYPES = ("float32", "float16")
_KEY = "fer_jax"
_FORMAT = 1


def write(path: str | os.PathLike, variables: Mapping[str, Any], metadata: Mapping[str, Any], *, dtype: str) -> None:
    """Writes a network, whole or not at all.

    metadata: JSON-serialisable. dtype: of the kernels, 'float32' or 'float16'; scales, biases and statistics, which
    are few and may be large, stay float32. Raises UserError where the dtype is another one or can't hold a value.
    """
    if dtype not in DTYPES:
        raise UserError(f"weights are stored as {' or '.join(DTYPES)}, not as {dtype}")
    tensors = {}
    for name, value in traverse_util.flatten_dict(jax.device_get(variables), sep=".").items():
        # 65,504 is the largest float16: what is larger would become infinite without a word.
        with np.errstate(over="ignore"):
            tensors[name] = np.asarray(value, dtype if value.ndim > 1 else "float32")
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"{name} holds a value that is not finite in {tensors[name].dtype}")
    path = pathlib.Path(path)
    # Renamed into place, so that a crash never leaves half a file.
    partial = path.with_name(path.name + ".partial")
    document = json.dumps({"format": _FORMAT, **metadata}, allow_nan=False)
    safetensors.numpy.save_file(tensors, partial, metadata={_KEY: document})
    partial.replace(path)


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the tensors by name, as they are stored, and the metadata.

    Raises UserError where the file isn't there, is cut off or damaged, or was not written by `write`.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            document = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    if document is None:
        raise UserError(f"{path} is a safetensors file of another program: its metadata lack {_KEY!r}")
    metadata = json.loads(document)
    version = metadata.pop("format")
    if version != _FORMAT:
        raise UserError(f"{path} has format {version}; this version of fer_jax reads format {_FORMAT}")
    return tensors, metadata


def fill(abstract: Mapping[str, Any], tensors: Mapping[str, np.ndarray], *, source: str | os.PathLike) -> dict:
    """Returns the tensors as the variables of a network.

    abstract: the variables' shapes, dtypes and shardings. source: the file, for the UserError that is raised where a
    tensor is missing, is one too many or has another shape.
    """
    # Names first: a network of other depth would else be told by the shape of whichever tensor comes first.
    wanted = traverse_util.flatten_dict(abstract, sep=".")
    for name in sorted(wanted.keys() ^ tensors.keys()):
        where = "lacks" if name in wanted else "has one tensor too many,"
        raise UserError(f"{source} holds another network than its config describes: it {where} {name}")
    filled = {}
    for name, like in wanted.items():
        shape = tensors[name].shape
        if shape != like.shape:
            raise UserError(f"{source}: {name} is {list(shape)}, where its config asks {list(like.shape)}")
        # float16 saves room in the file; parameters are float32.
        filled[name] = jax.device_put(tensors[name].astype(like.dtype), like.sharding)
    return traverse_util.unflatten_dict(filled, sep=".")
