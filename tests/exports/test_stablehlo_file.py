"""StableHLO files, run by JAX alone."""

import re
import subprocess
import sys

import jax.export
import numpy as np
import pytest

from fer_jax.exports import stablehlo_file
from fer_jax.exports.function import predict
from tests.support.networks import CASES, random_images, random_network


@pytest.mark.parametrize(("preprocessing", "options"), CASES)
def test_a_batch_of_any_size_gets_the_network_s_answers(preprocessing, options, tmp_path):
    trained = random_network(preprocessing, **options)
    stablehlo_file.write(trained, tmp_path / "net.stablehlo", dtype="float32")
    exported = jax.export.deserialize(bytearray((tmp_path / "net.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    # Only XLA's own operators: a custom call registered on this machine may be missing on another.
    assert set(re.findall(r"custom_call @(\w+)", exported.mlir_module())) == {"shape_assertion"}
    for number in (1, 3):
        images = random_images(number + 1, preprocessing)[:number]
        found, expected = exported.call(images), predict(trained, images)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


def test_the_file_needs_no_fer_jax(tmp_path):
    trained = random_network()
    stablehlo_file.write(trained, tmp_path / "net.stablehlo", dtype="float32")
    images = random_images(2, trained.preprocessing)
    np.save(tmp_path / "images.npy", images)
    code = """
import sys, jax.export, numpy as np
file = open("net.stablehlo", "rb").read()
np.save("found.npy", jax.export.deserialize(bytearray(file)).call(np.load("images.npy"))["probabilities"])
sys.exit(any(name.partition(".")[0] in ("fer_jax", "flax") for name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), predict(trained, images)["probabilities"], atol=1e-6)
