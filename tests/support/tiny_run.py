"""The smallest run, and a server that has imported its modules, from which its commands are forked."""

import multiprocessing
import os
import pathlib
import sys

import numpy as np

# The smallest network, with the convolution that compiles fastest.
TINY = {"model.depth": 10, "model.stages": 2, "model.width": 2, "model.dtype": "float32", "model.conv": "lax"}


def write_faces(path: pathlib.Path) -> pathlib.Path:
    """Writes a fer2013.csv of 40 training, 21 validation and 17 test faces that a network can tell apart."""
    generator = np.random.default_rng(0)
    lines = ["emotion,pixels,Usage"]
    for usage, count in (("Training", 40), ("PublicTest", 21), ("PrivateTest", 17)):
        for row in range(count):
            label = row % 7
            image = generator.integers(0, 60, (48, 48))
            image[6 * label : 6 * label + 6] += 150
            lines.append(f"{label},{' '.join(map(str, image.ravel()))},{usage}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_votes(path: pathlib.Path) -> pathlib.Path:
    """Writes FER+'s csv for `write_faces`: all ten votes of each image are for its label."""
    lines = ["Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"]
    columns = (4, 5, 6, 1, 3, 2, 0)  # of angry, disgust, fear, happy, sad, surprise, neutral
    for usage, count in (("Training", 40), ("PublicTest", 21), ("PrivateTest", 17)):
        for row in range(count):
            votes = [10 * (column == columns[row % 7]) for column in range(10)]
            lines.append(f"{usage},{usage}{row}.png,{','.join(map(str, votes))}")
    path.write_text("\n".join(lines) + "\n")
    return path


def run_command(arguments: list[str], out, err, environment: dict[str, str]) -> None:
    """Does what `python -m fer_jax.main` does; called in a process of its own. out, err: objects with a fileno."""
    run_script("from fer_jax import main; main.run()", arguments, out, err, environment)


def run_script(script: str, arguments: list[str], out, err, environment: dict[str, str]) -> None:
    """Does what `python -c script` does, but for what JAX reads when it is imported; called in a process of its own."""
    for number, file in ((1, out), (2, err)):
        os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    import jax

    try:
        exec(script, {"__name__": "__main__"})
    finally:
        # A forked process ends without its atexit functions, among them JAX's, which waits for the other processes.
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()


# Processes are forked from a server that has imported everything, which saves most of their start-up time.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "fer_jax.train",
        "fer_jax.data.pipeline",
        "fer_jax.data.prepared",
        "clu.metric_writers",
        "sklearn.metrics",
        "scipy.stats",
        "matplotlib.figure",
    ]
)
