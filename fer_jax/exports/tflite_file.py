"""TensorFlow Lite files: the trained network for phones and small boards, written by TensorFlow's own converter.

The file takes one image, uint8 `images` [1, height, width, channels], and returns the same as `function.make_function`.
Its signature names inputs and outputs.
"""

import functools
import pathlib
import warnings
from collections.abc import Callable

import jax
import numpy as np

from fer_jax.errors import naming
from fer_jax.exports.function import make_function
from fer_jax.inference.trained_model import TrainedModel


def write(trained: TrainedModel, path: pathlib.Path, *, dtype: str) -> None:
    """Writes the network with its weights stored as 'float32', 'float16' or 'int8'.

    int8 is TensorFlow's dynamic range quantisation: each channel of a kernel has its own scale, and products are
    computed on integers if the runtime supports it. Raises OSError or StorageError if the file can't be written.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    function = functools.partial(make_function(trained.model, trained.preprocessing), jax.device_get(trained.variables))
    # Lowered for CPUs whatever devices are present: the converter doesn't know the operators of GPUs.
    converted = jax2tf.convert(function, with_gradient=False, native_serialization_platforms=("cpu",))
    spec = tf.TensorSpec((1, *trained.preprocessing.image_shape), tf.uint8, name="images")
    # As a part of a module, the function keeps the names of its outputs.
    module = tf.Module()
    module.predict = tf.function(converted, input_signature=[spec], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.predict.get_concrete_function()], module)
    # Optimize.DEFAULT means int8 unless a dtype is named.
    if dtype != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if dtype == "float16":
        converter.target_spec.supported_types = [tf.float16]
    with naming(path):
        path.write_bytes(converter.convert())


def read(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `predict(uint8 images) -> probabilities`, float32 [batch, classes], by TensorFlow Lite's interpreter."""
    import tensorflow as tf

    with warnings.catch_warnings():
        # The warning names the release of its removal, which is long out; the successor is another package.
        warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated")
        run = tf.lite.Interpreter(model_path=str(path)).get_signature_runner()
    return lambda images: np.concatenate([run(images=image[None])["probabilities"] for image in images])
