"""Folders that are web pages: detector and network run in the browser, by ONNX Runtime Web, without a server's help."""

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

# What onnxruntime-web's dist/ has for WebAssembly; the page needs no others.
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_CDN = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist"
# What differs from the page of faces/server.py: who is asked, and what becomes of the picture.
_BEGIN, _END = "// predict: begin\n", "// predict: end\n"
_PREDICT = """const network = import("./fer.js");
const predict = async (body, isFrame) => (await network).predict(body, $("explain").checked && !isFrame);
"""
_PRIVACY = "The picture is sent to this computer's own server, which keeps nothing of it."
_HERE = "The picture stays in this browser."


def write(trained: TrainedModel, path: pathlib.Path, *, dtype: str, runtime: str | None = None) -> None:
    """Writes index.html, fer.js, network.json, network.onnx and detector.onnx to a new folder.

    dtype: of the network's weights. runtime: a folder with onnxruntime-web's files, which are copied to ort/; without
    one the page takes them from a public server. Raises UserError where `runtime` lacks one, and OSError or
    StorageError where a file can't be written.
    """
    # Before anything is written.
    files = {} if runtime is None else _find_runtime(pathlib.Path(runtime))
    path.mkdir()
    onnx_file.write(trained, path / "network.onnx", dtype=dtype)
    detector_onnx.write(path / "detector.onnx")
    preprocessing = trained.preprocessing
    height, width, _ = preprocessing.image_shape
    # Of the view's pictures the maps are the first one's.
    first = pictures_of(preprocessing.view, preprocessing)[0]
    part = [first.left / width, first.top / height, first.width / width, first.height / height]
    about = {"class_names": trained.class_names, "image_shape": preprocessing.image_shape, "part": part}
    page = importlib.resources.files("fer_jax").joinpath("page")
    html = page.joinpath("index.html").read_text(encoding="utf-8")
    # One page for both, so that what is mended in one is in the other.
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
    """Returns `predict(uint8 images) -> probabilities`, by the network's file in ONNX Runtime."""
    return onnx_file.read(path / "network.onnx")


def _find_runtime(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns where the files of RUNTIME are: in the folder itself, or as `npm pack` unpacks them."""
    found = {}
    for name in RUNTIME:
        places = [folder / name, folder / "dist" / name, folder / "package" / "dist" / name]
        found[name] = next((place for place in places if place.is_file()), None)
        if found[name] is None:
            raise UserError(
                f"--ort is {folder}, which has no {name}; npm pack onnxruntime-web, unpacked, has it in package/dist"
            )
    return found
