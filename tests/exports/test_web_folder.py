"""The web page that needs no server: its files, its detector, and the whole page in a real browser."""

import functools
import http.server
import os
import pathlib
import re
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from fer_jax import Classifier
from fer_jax.errors import UserError
from fer_jax.exports import detector_onnx, web_folder
from fer_jax.faces.detection import BlazeFaceDetector
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.models import blazeface
from tests.support import browser as browser_lib

RUN = pathlib.Path(__file__).parents[1] / "fixtures" / "run_0.1"


def test_the_detector_s_file_says_what_the_detector_does(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    detector_onnx.write(tmp_path / "detector.onnx")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 192, 192, 3), np.uint8)
    with Image.open(browser_lib.PHOTOGRAPH) as photograph:
        pictures[1] = np.asarray(photograph.resize((192, 192)))
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx", providers=["CPUExecutionProvider"])
    values, scores = session.run(["values", "scores"], {"pictures": pictures})
    variables = BlazeFaceDetector()._variables
    expected, logits = jax.jit(blazeface.BlazeFace().apply)(variables, pictures.astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(values, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(scores, jax.nn.sigmoid(logits), atol=1e-5)
    assert scores[1].max() > 0.8


@pytest.fixture
def runtime(tmp_path):
    folder = tmp_path / "unpacked" / "package" / "dist"
    folder.mkdir(parents=True)
    for name in web_folder.RUNTIME:
        (folder / name).write_text(name)
    return tmp_path / "unpacked"


def test_the_folder_is_whole_and_asks_nothing_elsewhere_where_the_runtime_is_at_hand(tmp_path, runtime):
    pytest.importorskip("onnx")
    trained = TrainedModel.load(RUN)
    web_folder.write(trained, tmp_path / "page", dtype="float32", runtime=str(runtime))
    files = sorted(path.relative_to(tmp_path / "page").as_posix() for path in (tmp_path / "page").rglob("*.*"))
    own = ["detector.onnx", "fer.js", "index.html", "network.json", "network.onnx"]
    assert files == sorted([*own, *(f"ort/{name}" for name in web_folder.RUNTIME)])
    html, script = ((tmp_path / "page" / name).read_text() for name in ("index.html", "fer.js"))
    assert "://" not in script
    assert "The picture stays in this browser." in html
    assert "server" not in html
    assert "fetch(" not in html
    # The largest size that a server accepts, which doesn't apply here.
    assert "20 MB" not in html
    # Without a `runtime` argument the page loads the runtime from a public server.
    web_folder.write(trained, tmp_path / "other", dtype="float16")
    assert re.search(r'from "https://\S+/ort\.wasm\.min\.mjs"', (tmp_path / "other" / "fer.js").read_text())


def test_a_runtime_that_lacks_a_file_is_said_before_anything_is_written(tmp_path, runtime):
    (runtime / "package" / "dist" / web_folder.RUNTIME[2]).unlink()
    with pytest.raises(UserError, match=r"which has no ort-wasm-simd-threaded\.wasm; npm pack onnxruntime-web"):
        web_folder.write(TrainedModel.load(RUN), tmp_path / "page", dtype="float32", runtime=str(runtime))
    assert not (tmp_path / "page").exists()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Yields a browser that shows the packaged network's page, served by a plain file server."""
    browser_lib.require()
    if "ORT_WEB" not in os.environ:
        pytest.skip("ORT_WEB does not name a folder with onnxruntime-web")
    folder = tmp_path_factory.mktemp("web")
    web_folder.write(TrainedModel.load("pretrained"), folder / "page", dtype="float16", runtime=os.environ["ORT_WEB"])
    handler = functools.partial(_Quiet, directory=folder / "page")
    browser = browser_lib.start(browser_lib.write_camera(folder / "camera.y4m"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.get(f"http://localhost:{server.server_address[1]}/")
        yield browser
        browser.quit()
        server.shutdown()


def test_the_browser_answers_as_the_classifier_does_and_asks_nobody_else(page):
    browser_lib.upload(page, browser_lib.PHOTOGRAPH)
    said = browser_lib.wait_for_status(page, "One face")
    (expected,) = Classifier()(browser_lib.PHOTOGRAPH)
    assert expected["emotion"] in said
    # The browser scales pictures differently from Pillow.
    np.testing.assert_allclose(bars_of(page), list(expected["emotions"].values()), atol=0.05)
    box = page.find_elements("css selector", "#stage rect")[1]
    found = [float(box.get_attribute(name)) for name in ("x", "y", "width", "height")]
    np.testing.assert_allclose(found, expected["box"], atol=4)
    assert len({url.split("/")[2] for url in browser_lib.addresses_asked(page)}) == 1


def test_two_faces_none_a_bad_file_and_a_map(page, tmp_path):
    browser_lib.upload(page, browser_lib.write_couple(tmp_path / "both.png"))
    browser_lib.wait_for_status(page, "2 faces: ")
    Image.new("RGB", (100, 80), browser_lib.WALL).save(tmp_path / "wall.png")
    browser_lib.upload(page, tmp_path / "wall.png")
    browser_lib.wait_for_status(page, "No face found")
    (tmp_path / "text.png").write_text("no picture")
    browser_lib.upload(page, tmp_path / "text.png")
    browser_lib.wait_for_status(page, "not a picture that can be read")
    page.find_element("id", "explain").send_keys(" ")
    browser_lib.upload(page, browser_lib.PHOTOGRAPH)
    browser_lib.wait_for_status(page, "One face")
    assert page.find_element("css selector", ".face img").get_property("naturalWidth") == 192


def bars_of(page) -> list[float]:
    return [float(bar.get_attribute("value")) for bar in page.find_elements("css selector", ".face progress")]


# When the browser drew black edges, the probabilities moved by 0.66, 0.09 and 0.05.
@pytest.mark.parametrize(("kind", "tolerance"), [("left", 0.05), ("top", 0.02), ("transparent", 0.02)])
def test_a_face_beyond_the_edge_and_one_in_what_is_transparent_are_shown_as_in_python(page, tmp_path, kind, tolerance):
    with Image.open(browser_lib.PHOTOGRAPH) as photograph:
        if kind == "transparent":
            # Transparent pixels are black, as many programs leave them.
            y, x = np.mgrid[:200, :200]
            is_face = (x - 97) ** 2 / 30**2 + (y - 95) ** 2 / 40**2 < 1
            opaque = np.dstack([photograph, np.full((200, 200), 255, np.uint8)])
            image = Image.fromarray(opaque * is_face[..., None].astype(np.uint8))
        else:
            image = photograph.crop((95, 0, 200, 200) if kind == "left" else (0, 75, 200, 200))
    image.save(tmp_path / "face.png")
    (expected,) = Classifier()(tmp_path / "face.png")
    browser_lib.upload(page, tmp_path / "face.png")
    browser_lib.wait_for_status(page, "One face")
    np.testing.assert_allclose(bars_of(page), list(expected["emotions"].values()), atol=tolerance)


def test_a_picture_may_be_larger_than_a_server_takes(page, tmp_path):
    # Bytes after the end of a picture are ignored.
    (tmp_path / "large.jpg").write_bytes(browser_lib.PHOTOGRAPH.read_bytes() + bytes(21_000_000))
    browser_lib.upload(page, tmp_path / "large.jpg")
    browser_lib.wait_for_status(page, "One face")


def test_the_webcam_is_looked_at(page):
    page.refresh()
    page.find_element("id", "camera").click()
    browser_lib.wait_for_status(page, "One face: happy")
    page.find_element("id", "camera").click()
    browser_lib.wait_for_status(page, "off")
