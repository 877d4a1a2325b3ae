"""The export formats of a trained network: what each needs, and the module that writes and reads it.

The command line lists the formats, so nothing that takes long to import is imported here.
"""

import importlib
import importlib.util
import types
from typing import NamedTuple

from fer_jax.errors import UserError


class Format(NamedTuple):
    """An export format.

    module: a module of this package; its `write(trained, path, *, dtype)` writes the network, and its `read(path)`
    returns `predict(uint8 images) -> probabilities`, which runs the program that the format is for. suffix: the file's,
    or '' if a folder is written. dtypes: those in which weights can be stored. writers, readers: the packages needed to
    write and to read the format, besides fer_jax's dependencies. extra: the extra of fer_jax that installs these.
    note: advice for the user. one_picture: whether the format can't hold a view of several pictures.
    """

    module: str
    suffix: str
    dtypes: tuple[str, ...]
    writers: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    extra: str = ""
    note: str = ""
    one_picture: bool = False

    def load(self) -> types.ModuleType:
        """Imports and returns the module."""
        # Imported on demand: TensorFlow and PyTorch take seconds to import, and need not be installed.
        return importlib.import_module(f"fer_jax.exports.{self.module}")

    def missing_readers(self) -> list[str]:
        """Returns those of `readers` that are not installed."""
        return [package for package in self.readers if not _is_installed(package)]


FORMATS = {
    "safetensors": Format("weights_file", ".safetensors", ("float32", "float16", "bfloat16")),
    "onnx": Format("onnx_file", ".onnx", ("float32", "float16"), ("onnx",), ("onnxruntime",), "onnx"),
    "stablehlo": Format(
        "stablehlo_file",
        ".stablehlo",
        ("float32",),
        note="JAX promises to read this file for six months; keep the run, or a weights file, beside it",
    ),
    "tflite": Format("tflite_file", ".tflite", ("float32", "float16", "int8")),
    "torch": Format("torch_folder", "", ("float32",), (), ("torch", "torchvision"), "torch"),
    "transformers": Format(
        "transformers_folder", "", ("float32",), (), ("torch", "transformers"), "transformers", one_picture=True
    ),
    "web": Format(
        "web_folder",
        "",
        ("float32", "float16"),
        ("onnx",),
        ("onnxruntime",),
        "onnx",
        note="Served by any file server, such as python -m http.server; a browser opens no modules from a file",
    ),
}
# The dtypes of all formats.
DTYPES = ("float32", "float16", "bfloat16", "int8")


def find(name: str, dtype: str) -> Format:
    """Returns the format of that name; raises UserError if it has no such dtype, or its writers aren't installed."""
    found = FORMATS[name]
    if dtype not in found.dtypes:
        kinds = " or ".join([", ".join(found.dtypes[:-1]), found.dtypes[-1]] if found.dtypes[1:] else found.dtypes)
        raise UserError(f"--dtype is {dtype}; --format={name} stores weights as {kinds}")
    missing = [package for package in found.writers if not _is_installed(package)]
    if missing:
        raise UserError(
            f"--format={name} needs {' and '.join(missing)}: pip install 'fer_jax[{found.extra}]' brings it"
        )
    return found


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
