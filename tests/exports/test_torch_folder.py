"""Folders for PyTorch: their contents, and torchvision's predictions from them if it is installed."""

import json
import re

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from fer_jax.errors import UserError
from fer_jax.exports import torch_folder
from fer_jax.exports.function import predict
from fer_jax.inference.preprocessing import Preprocessing
from tests.support.networks import random_images, random_network


def test_tensors_have_torchvision_s_names_and_axes(tmp_path):
    trained = random_network(depth=50, width=3)
    torch_folder.write(trained, tmp_path / "net", dtype="float32")
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["README.md", "model.safetensors"]
    tensors = safetensors.numpy.load_file(tmp_path / "net" / "model.safetensors")
    # The number of tensors of torchvision's ResNet-50.
    assert len(tensors) == 320
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    assert shapes["conv1.weight"] == (3, 1, 7, 7)
    assert shapes["layer1.0.downsample.0.weight"] == (12, 3, 1, 1)
    assert shapes["layer4.2.bn3.running_var"] == (96,)
    assert shapes["fc.weight"] == (3, 96)
    kernel = trained.variables["params"]["stage2_block1"]["Conv_1"]["kernel"]
    np.testing.assert_array_equal(tensors["layer2.0.conv2.weight"][4, 2], kernel[:, :, 2, 4])
    var = trained.variables["batch_stats"]["stage2_block1"]["shortcut_norm"]["var"]
    np.testing.assert_array_equal(tensors["layer2.0.downsample.1.running_var"], var)


def test_the_readme_says_how_to_load_and_feed_it(tmp_path):
    trained = random_network(Preprocessing((48, 40, 1), standardize=True, crop=36, view="centre_crop"), width=64)
    trained.metadata["licence"] = "CC BY 4.0"
    torch_folder.write(trained, tmp_path / "net", dtype="float32")
    text = (tmp_path / "net" / "README.md").read_text()
    assert (
        "model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)\nmodel.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3" in text
    )
    assert "divided by 255; of each image its mean subtracted, and" in text
    assert "the 36x36 centre cut out" in text
    assert "logits of sad, happy, bored, in this order" in text
    assert "Licence: CC BY 4.0" in text


def test_squeeze_and_excitation_is_refused(tmp_path):
    with pytest.raises(UserError, match="torchvision does, whose ResNets have no squeeze-and-excitation"):
        torch_folder.write(random_network(squeeze_excitation=True), tmp_path / "net", dtype="float32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("preprocessing", "options"),
    [
        (Preprocessing((48, 48, 1)), {"depth": 18, "width": 64}),
        (Preprocessing((33, 32, 3), standardize=True), {"depth": 50, "width": 8}),
        (
            Preprocessing((40, 40, 1), crop=33, view="ten_crops"),
            {"depth": 50, "width": 4, "stages": 3, "stem_kernel": 3, "stem_stride": 1, "stem_pool": False},
        ),
        (Preprocessing((24, 24, 1), view="whole_mirrored"), {"depth": 10, "width": 64, "stages": 2, "stem_kernel": 5}),
    ],
)
def test_torchvision_gives_the_network_s_answers(preprocessing, options, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    trained = random_network(preprocessing, **options)
    torch_folder.write(trained, tmp_path / "net", dtype="float32")
    images = random_images(5, preprocessing)[:4]
    expected = predict(trained, images)["probabilities"]
    np.testing.assert_allclose(torch_folder.read(tmp_path / "net")(images), expected, atol=1e-5)
    # The code in README.md makes the same network.
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "net" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path / "net")
    exec(code, names := {})
    channels = preprocessing.image_shape[2]
    pictures = torch.rand(2, channels, 24, 24, generator=torch.Generator().manual_seed(0))
    built = torch_folder._build(**json.loads(metadata_of(tmp_path / "net" / "model.safetensors")["architecture"]))
    built.load_state_dict(names["model"].state_dict())
    with torch.no_grad():
        assert torch.equal(built.eval()(pictures), names["model"](pictures))


def metadata_of(path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata()
