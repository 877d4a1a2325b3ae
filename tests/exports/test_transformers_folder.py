"""Folders for transformers: their contents, and the library's predictions from them if it is installed."""

import json

import numpy as np
import pytest
import safetensors.numpy

from fer_jax.errors import UserError
from fer_jax.exports import transformers_folder
from fer_jax.exports.function import predict
from fer_jax.inference.preprocessing import Preprocessing
from tests.support.networks import random_images, random_network


def write(trained, path) -> dict[str, np.ndarray]:
    transformers_folder.write(trained, path, dtype="float32")
    return safetensors.numpy.load_file(path / "model.safetensors")


def test_names_and_config_are_theirs(tmp_path):
    trained = random_network(depth=50, width=3)
    tensors = write(trained, tmp_path / "net")
    stage = "resnet.encoder.stages.1.layers.0"
    assert tensors["resnet.embedder.embedder.normalization.running_mean"].shape == (3,)
    assert tensors[f"{stage}.shortcut.convolution.weight"].shape == (24, 12, 1, 1)
    assert tensors[f"{stage}.layer.2.normalization.weight"].shape == (24,)
    assert tensors["classifier.1.weight"].shape == (3, 96)
    kernel = trained.variables["params"]["stage2_block1"]["Conv_1"]["kernel"]
    np.testing.assert_array_equal(tensors[f"{stage}.layer.1.convolution.weight"][4, 2], kernel[:, :, 2, 4])
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert (config["hidden_sizes"], config["depths"]) == ([12, 24, 48, 96], [3, 4, 6, 3])
    assert config["id2label"] == {"0": "sad", "1": "happy", "2": "bored"}


def test_a_grey_network_takes_colours_as_their_luma(tmp_path):
    trained = random_network()
    kernel = write(trained, tmp_path / "net")["resnet.embedder.embedder.convolution.weight"]
    own = trained.variables["params"]["stem_conv"]["kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_allclose(kernel, own * np.reshape([0.299, 0.587, 0.114], (3, 1, 1)), rtol=1e-6)
    colours = random_network(Preprocessing((13, 13, 3)))
    kernel = write(colours, tmp_path / "colours")["resnet.embedder.embedder.convolution.weight"]
    np.testing.assert_array_equal(kernel, colours.variables["params"]["stem_conv"]["kernel"].transpose(3, 2, 0, 1))


@pytest.mark.parametrize(
    ("preprocessing", "options", "message"),
    [
        (
            Preprocessing((13, 13, 1)),
            {"stem_kernel": 3, "stem_pool": False},
            "its stem is 3/2/none, and theirs 7/2/pool",
        ),
        (Preprocessing((13, 13, 1)), {"squeeze_excitation": True}, "theirs has no squeeze-and-excitation"),
        (Preprocessing((13, 13, 1), standardize=True), {}, "theirs can't be shown standardised images"),
    ],
)
def test_a_network_that_they_have_not_is_refused(preprocessing, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write(random_network(preprocessing, **options), tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("preprocessing", "options"),
    [
        (Preprocessing((48, 48, 1)), {"depth": 18, "width": 16}),
        (Preprocessing((48, 40, 3)), {"depth": 50, "width": 4, "stages": 3}),
        (Preprocessing((40, 40, 1), crop=33, view="centre_crop"), {"depth": 10, "width": 8}),
    ],
)
def test_transformers_gives_the_network_s_answers(preprocessing, options, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    trained = random_network(preprocessing, **options)
    # Grey pictures, whose channels are equal; the test above covers colours.
    images = random_images(5, Preprocessing((*preprocessing.image_shape[:2], 1)))
    own = np.repeat(images, preprocessing.image_shape[2], axis=3)
    write(trained, tmp_path / "net")
    expected = predict(trained, own)["probabilities"]
    np.testing.assert_allclose(transformers_folder.read(tmp_path / "net")(images), expected, atol=1e-5)
