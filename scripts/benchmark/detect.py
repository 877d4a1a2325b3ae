"""Measures face detectors on photographs that packages ship: python -m scripts.benchmark detect [--detector ...]

The photographs are those of scikit-image (`pip install -e '.[bench]'`) and, where they are installed, of ultralytics
and insightface; a package that isn't there is named and left out. A face is found if a box and the known one have an
intersection over union of at least 0.4; every other box is false. Pictures are timed one at a time, after a first
one that isn't counted.
"""

import argparse
import importlib.util
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from fer_jax.errors import UserError
from fer_jax.faces import pictures
from fer_jax.faces.detectors import import_opencv, make_detector

# {package: {file: boxes (left, top, width, height) of its faces}}, checked by eye.
KNOWN = {
    "skimage/data": {
        "astronaut.png": [(170, 66, 108, 108)],
        "camera.png": [(200, 120, 77, 77)],
        "chelsea.png": [],
        "coins.png": [],
        "coffee.png": [],
        "rocket.jpg": [],
        "page.png": [],
        "brick.png": [],
        "motorcycle_left.png": [],
        "clock_motion.png": [],
        "hubble_deep_field.jpg": [],
        "horse.png": [],
        "text.png": [],
        "moon.png": [],
        "retina.jpg": [],
        "color.png": [],
        "logo.png": [],
        "ihc.png": [],
        "gravel.png": [],
        "grass.png": [],
    },
    "ultralytics/assets": {
        "bus.jpg": [(112, 412, 52, 52), (266, 423, 48, 48)],
        "zidane.jpg": [(912, 120, 159, 159), (545, 270, 149, 149)],
    },
    "insightface/data/images": {
        "t1.jpg": [
            (60, 288, 105, 105),
            (452, 287, 120, 120),
            (726, 360, 111, 111),
            (870, 77, 128, 128),
            (265, 174, 96, 96),
            (1122, 298, 104, 104),
        ],
        "Tom_Hanks_54745.png": [(7, 13, 95, 95)],
        "mask_black.jpg": [],
        "mask_blue.jpg": [],
        "mask_green.jpg": [],
        "mask_white.jpg": [],
    },
}
MIN_OVERLAP = 0.4

Photograph = tuple[np.ndarray, Sequence[tuple]]
VARIANTS = {
    "as they are": lambda pixels: pixels,
    "grey": lambda pixels: np.array(Image.fromarray(pixels).convert("L").convert("RGB")),
    "at a quarter of the brightness": lambda pixels: pixels // 4,
}


def load() -> tuple[list[Photograph], list[str]]:
    """Returns the photographs that are installed, with their faces, and the names of packages that are not."""
    photographs, missing = [], []
    for folder, files in KNOWN.items():
        package, *rest = folder.split("/")
        # The package is only located: importing some of them takes seconds and gigabytes.
        spec = importlib.util.find_spec(package)
        if spec is None:
            missing.append(package)
            continue
        path = pathlib.Path(spec.submodule_search_locations[0], *rest)
        photographs += [(pictures.read(path / name).pixels, boxes) for name, boxes in files.items()]
    return photographs, missing


def count(found: Sequence[tuple], known: Sequence[tuple]) -> tuple[int, int]:
    """Returns how many of the known boxes are found, and how many of the found ones are false."""

    def overlap(one: tuple, other: tuple) -> float:
        across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
        down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
        common = max(across, 0) * max(down, 0)
        return common / (one[2] * one[3] + other[2] * other[3] - common)

    left = list(known)
    for box in found:
        best = max(left, key=lambda other: overlap(box, other), default=None)
        # Each face is found only once; a second box on it is false.
        if best is not None and overlap(box, best) >= MIN_OVERLAP:
            left.remove(best)
    hits = len(known) - len(left)
    return hits, len(found) - hits


def measure(detect: Callable[[np.ndarray], Sequence[tuple]], photographs: Sequence[Photograph]) -> dict[str, float]:
    """Returns the sums of `count` and the median milliseconds per picture; detect: pixels -> boxes."""
    detect(photographs[0][0])  # compiles
    hits, false, seconds = 0, 0, []
    for pixels, known in photographs:
        start = time.perf_counter()
        found = detect(pixels)
        seconds.append(time.perf_counter() - start)
        more, wrong = count(found, known)
        hits, false = hits + more, false + wrong
    return {"found": hits, "false": false, "milliseconds": 1000 * statistics.median(seconds)}


def make(name: str, small_faces: bool) -> Callable[[np.ndarray], Sequence[tuple]]:
    """Returns a function from pixels to boxes; name: a detector of fer_jax, or 'haar' for OpenCV's as in `fer`."""
    if name != "haar":
        detector = make_detector(name)
        return lambda pixels: [face.box for face in detector([pixels], small_faces=small_faces)[0]]
    cv2 = import_opencv("haar")
    if not hasattr(cv2, "CascadeClassifier"):
        raise UserError(f"haar is not in OpenCV {cv2.__version__}; pip install 'opencv-python-headless<5'")
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    return lambda pixels: cascade.detectMultiScale(
        cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), scaleFactor=1.1, minNeighbors=5, minSize=(50, 50)
    )


def main(argv: list[str]) -> None:
    """Prints the results as a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark detect", description=__doc__)
    parser.add_argument("--detector", nargs="+", default=["blazeface"], help="blazeface, yunet:FILE.onnx, haar")
    parser.add_argument("--small-faces", action="store_true")
    arguments = parser.parse_args(argv)
    photographs, missing = load()
    for package in missing:
        print(f"{package} is left out: it is not installed")
    if not photographs:
        return
    total = sum(len(boxes) for _, boxes in photographs)
    print(f"{len(photographs)} photographs with {total} faces\n")
    print("| detector | pictures | found | false | ms a picture |\n|---|---|---:|---:|---:|")
    for name in arguments.detector:
        detect = make(name, arguments.small_faces)
        for variant, change in VARIANTS.items():
            result = measure(detect, [(change(pixels), boxes) for pixels, boxes in photographs])
            cells = [name, variant, f"{result['found']} of {total}", result["false"], f"{result['milliseconds']:.1f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
