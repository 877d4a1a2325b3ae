"""StableHLO files: the trained network as the program that XLA compiles, for Python with JAX but without fer_jax.

    jax.export.deserialize(open("net.stablehlo", "rb").read()).call(images)

Such a file runs on CPUs, NVIDIA GPUs and TPUs. JAX promises to read it for six months
(https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees): it is for serving, not for archiving.
"""

import functools
import pathlib
from collections.abc import Callable

import jax
import jax.export
import numpy as np

from fer_jax.errors import naming
from fer_jax.exports.function import make_function
from fer_jax.inference.trained_model import TrainedModel

_PLATFORMS = ("cpu", "cuda", "tpu")


def write(trained: TrainedModel, path: pathlib.Path, *, dtype: str) -> None:
    """Writes `function.make_function` with its weights, float32, for batches of any size.

    Raises OSError or StorageError if the file can't be written.
    """
    function = functools.partial(make_function(trained.model, trained.preprocessing), jax.device_get(trained.variables))
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *trained.preprocessing.image_shape), np.uint8)
    # Stored with each product: otherwise the device that runs the file would round the inputs by its own default.
    with jax.default_matmul_precision("highest"):
        exported = jax.export.export(jax.jit(function), platforms=_PLATFORMS)(images)
    with naming(path):
        path.write_bytes(exported.serialize())


def read(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `predict(uint8 images) -> probabilities`, float32 [batch, classes], by JAX on its own devices."""
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    return lambda images: np.asarray(exported.call(images)["probabilities"])
