"""Times reading a FER-2013 csv: fer_jax.data.files.read against the usual way with pandas.

    python -m scripts.benchmark csv [PATH.csv]

Without a path it writes a csv of 35,887 random images, the size of FER-2013, to a temporary folder. Both ways read the
file into the same uint8 array, in turn, after one round that isn't counted. It takes about a minute and 1 GB of memory.
"""

import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from fer_jax.data import files
from fer_jax.data.dataset import IMAGE_SHAPE
from fer_jax.errors import UserError

NUM_ROUNDS = 3
NUM_IMAGES = {"Training": 28_709, "PublicTest": 3_589, "PrivateTest": 3_589}


def read_with_pandas(path: pathlib.Path) -> np.ndarray:
    """Returns uint8 [N, 48, 48, 1] as FER-2013 notebooks do, at best: without the dtype it takes thrice the time."""
    frame = pd.read_csv(path)
    images = frame["pixels"].apply(lambda pixels: np.array(pixels.split(), dtype=np.uint8))
    return np.stack(images.to_list()).reshape(-1, *IMAGE_SHAPE)


def read_with_fer_jax(path: pathlib.Path) -> np.ndarray:
    """Returns uint8 [N, 48, 48, 1], in the order of the file."""
    splits = files.read(path).splits.values()
    images = np.empty((sum(len(split) for split in splits), *IMAGE_SHAPE), np.uint8)
    for split in splits:
        images[split.rows] = split.images
    return images


def write_random_csv(path: pathlib.Path) -> None:
    generator = np.random.default_rng(0)
    numbers = np.array([str(value) for value in range(256)], dtype=object)
    with path.open("w") as file:
        file.write("emotion,pixels,Usage\n")
        for usage, count in NUM_IMAGES.items():
            for label in generator.integers(0, 7, count):
                pixels = generator.integers(0, 256, np.prod(IMAGE_SHAPE))
                file.write(f"{label},{' '.join(numbers[pixels])},{usage}\n")


def measure(read: Callable[[pathlib.Path], np.ndarray], path: pathlib.Path) -> tuple[float, float, np.ndarray]:
    """Returns the elapsed seconds, the processor seconds (of all threads) and the images."""
    wall, processor = time.perf_counter(), time.process_time()
    images = read(path)
    return time.perf_counter() - wall, time.process_time() - processor, images


def benchmark(path: pathlib.Path) -> None:
    ways = {"fer_jax": read_with_fer_jax, "pandas": read_with_pandas}
    seconds = {name: [] for name in ways}
    processor_seconds = {name: [] for name in ways}
    for round_number in range(1 + NUM_ROUNDS):
        results = {}
        for name, read in ways.items():
            wall, processor, results[name] = measure(read, path)
            if round_number > 0:
                seconds[name].append(wall)
                processor_seconds[name].append(processor)
        if round_number == 0 and not np.array_equal(results["pandas"], results["fer_jax"]):
            raise AssertionError("the two ways read different images")
        num_images = len(results["fer_jax"])
    print(f"{path.name}: {num_images:,} images, {path.stat().st_size / 1e6:.0f} MB, {NUM_ROUNDS} rounds in turn\n")
    print(f"{'seconds':20}{'median':>10}{'least':>10}{'most':>10}")
    for kind, measured in (("elapsed", seconds), ("processor", processor_seconds)):
        for name, values in measured.items():
            spread = (statistics.median(values), min(values), max(values))
            print(f"{f'{name}, {kind}':20}" + "".join(f"{value:10.2f}" for value in spread))
        ratio = statistics.median(measured["pandas"]) / statistics.median(measured["fer_jax"])
        print(f"{'pandas / fer_jax':20}{ratio:10.1f}\n")


def main(argv: list[str]) -> None:
    """Benchmarks the file that `argv` names, or else random images."""
    if len(argv) > 1 or "-h" in argv or "--help" in argv:
        sys.exit(__doc__)
    try:
        if argv:
            benchmark(pathlib.Path(argv[0]))
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder, "random.csv")
                write_random_csv(path)
                benchmark(path)
    except UserError as error:
        sys.exit(f"error: {error}")
