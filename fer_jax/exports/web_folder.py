"""Folders that are web pages: detector and network run in the browser by ONNX Runtime Web, with no server-side code."""

import importlib.resources
import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np

from fer_jax.errors import UserError, naming
from fer_jax.exports import detector_onnx, onnx_file
from fer_jax.inference.preprocessing import pictures_of
from fer_jax.inference.trained_model import TrainedModel

# The files for WebAssembly in onnxruntime-web's dist/; the page needs no others.
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_CDN = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist"
# The differences from the page of faces/server.py: where predictions are computed, and where the picture goes.
_BEGIN, _END = "// predict: begin\n", "// predict: end\n"
_PREDICT = """const network = import("./fer.js");
const predict = async (body, isFrame) => (await network).predict(body, $("explain").checked && !isFrame);
"""
_PRIVACY = "The picture is sent to this page's server, which keeps nothing of it."
_HERE = "The picture stays in this browser."


def write(trained: TrainedModel, path: pathlib.Path, *, dtype: str, runtime: str | None = None) -> None:
    """Writes index.html, fer.js, network.json, network.onnx and detector.onnx to a new folder.

    dtype: the dtype of the network's weights. runtime: a folder with onnxruntime-web's files, which are copied to ort/;
    if None, the page loads them from a public server. Raises UserError if `runtime` lacks one, and OSError or
    StorageError if a file can't be written.
    """
    # Checked before anything is written.
    files = {} if runtime is None else _find_runtime(pathlib.Path(runtime))
    path.mkdir()
    onnx_file.write(trained, path / "network.onnx", dtype=dtype)
    detector_onnx.write(path / "detector.onnx")
    preprocessing = trained.preprocessing
    height, width, _ = preprocessing.image_shape
    # The class activation maps are those of the view's first picture.
    first = pictures_of(preprocessing.view, preprocessing)[0]
    part = [first.left / width, first.top / height, first.width / width, first.height / height]
    about = {"class_names": trained.class_names, "image_shape": preprocessing.image_shape, "part": part}
    page = importlib.resources.files("fer_jax").joinpath("page")
    html = page.joinpath("index.html").read_text(encoding="utf-8")
    # The server's page is reused, so that a fix applies to both.
    before, rest = html.split(_BEGIN)
    html = (before + _PREDICT + rest.split(_END)[1]).replace(_PRIVACY, _HERE)
    script = page.joinpath("fer.js").read_text(encoding="utf-8").replace("ORT/", f"{'./ort' if files else _CDN}/")
    for name, text in {"network.json": json.dumps(about), "index.html": html, "fer.js": script}.items():
        with naming(path / name):
            (path / name).write_text(text, encoding="utf-8")
    for name, source in files.items():
        (path / "ort").mkdir(exist_ok=True)
        with naming(path / "ort" / name):
            shutil.copyfile(source, path / "ort" / name)


def read(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `predict(uint8 images) -> probabilities`, computed by ONNX Runtime from the network's file."""
    return onnx_file.read(path / "network.onnx")


def _find_runtime(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the paths of RUNTIME's files: in the folder itself, or where a package of `npm pack` has them."""
    found = {}
    for name in RUNTIME:
        places = [folder / name, folder / "dist" / name, folder / "package" / "dist" / name]
        found[name] = next((place for place in places if place.is_file()), None)
        if found[name] is None:
            raise UserError(
                f"--ort is {folder}, which has no {name}; npm pack onnxruntime-web, unpacked, has it in package/dist"
            )
    return found
