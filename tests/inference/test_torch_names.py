"""Networks of torchvision under the names of fer_jax."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from fer_jax.inference import torch_names
from fer_jax.inference.preprocessing import Preprocessing
from tests.support.networks import random_network


@pytest.mark.parametrize("depth", [18, 50])
def test_a_network_survives_the_way_there_and_back(depth):
    variables = random_network(depth=depth, width=2).variables
    ours = traverse_util.flatten_dict(variables, sep=".")
    back = torch_names.from_torch(torch_names.to_torch(variables), ours)
    assert back.keys() == ours.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_torchvision_s_network_gives_the_same_logits_here(depth):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    theirs = getattr(models, f"resnet{depth}")(num_classes=5)
    draw = np.random.default_rng(0)
    images = draw.random((2, 48, 40, 3), np.float32)
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    # A training pass makes statistics other than 0 and 1.
    with torch.no_grad():
        theirs.train()(batch)
        expected = theirs.eval()(batch).numpy()
    trained = random_network(Preprocessing((48, 40, 3)), class_names="abcde", depth=depth, width=64)
    wanted = traverse_util.flatten_dict(trained.variables, sep=".")
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    ours = torch_names.from_torch(tensors, wanted)
    assert ours.keys() == wanted.keys()
    variables = traverse_util.unflatten_dict(ours, sep=".")
    logits = jax.jit(lambda v, x: trained.model.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
