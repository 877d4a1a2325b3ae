"""TensorFlow Lite files, run by its interpreter."""

import numpy as np
import pytest
import tensorflow as tf

from fer_jax.exports import tflite_file
from fer_jax.exports.function import predict
from tests.support.networks import CASES, random_images, random_network


@pytest.mark.parametrize(("preprocessing", "options"), CASES)
def test_an_image_gets_the_network_s_answers_under_their_names(preprocessing, options, tmp_path):
    trained = random_network(preprocessing, **options)
    tflite_file.write(trained, tmp_path / "net.tflite", dtype="float32")
    interpreter = tf.lite.Interpreter(model_path=str(tmp_path / "net.tflite"))
    (signature,) = interpreter.get_signature_list().values()
    assert (signature["inputs"], sorted(signature["outputs"])) == (["images"], ["cam", "logits", "probabilities"])
    image = random_images(2, preprocessing)[:1]
    found, expected = interpreter.get_signature_runner()(images=image), predict(trained, image)
    for name in expected:
        # The maps of random networks reach ten and more, so the bound is relative to their size, as for ONNX.
        bound = 1e-5 * max(1, np.abs(expected[name]).max())
        np.testing.assert_allclose(found[name], expected[name], atol=bound, err_msg=name)


def test_smaller_weights_make_a_smaller_file_that_answers_nearly_the_same(tmp_path):
    trained = random_network(stages=4, width=16)
    images = random_images(9, trained.preprocessing)
    expected = predict(trained, images)["probabilities"]
    sizes, differences = [], []
    for dtype in ("float32", "float16", "int8"):
        path = tmp_path / f"{dtype}.tflite"
        tflite_file.write(trained, path, dtype=dtype)
        sizes.append(path.stat().st_size)
        differences.append(np.abs(tflite_file.read(path)(images) - expected).max())
    assert sizes[1] < 0.55 * sizes[0]
    assert sizes[2] < 0.35 * sizes[0]
    assert differences[0] < 1e-6 < differences[1] < 1e-2
    assert differences[1] < differences[2] < 0.1
