"""BlazeFace, compared with stored outputs of the original."""

import importlib.resources
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from jax import lax

from fer_jax.models import blazeface

# Outputs of the original file in LiteRT 2.3: (values, logits) of every third cell of each row and column.
REFERENCE = pathlib.Path(__file__).parents[1] / "fixtures" / "blazeface.npz"


@pytest.fixture(scope="module")
def variables():
    path = importlib.resources.files("fer_jax.pretrained") / "blazeface_full_range.safetensors"
    tensors = {name: value.astype(np.float32) for name, value in safetensors.numpy.load(path.read_bytes()).items()}
    return {"params": traverse_util.unflatten_dict(tensors, sep=".")}


def pictures() -> dict[str, np.ndarray]:
    y, x = np.mgrid[:192, :192]
    return {
        "noise": np.random.default_rng(0).integers(0, 256, (192, 192, 3), dtype=np.uint8),
        "ramp": np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8),
    }


def test_it_computes_what_the_original_does(variables):
    images = np.stack(list(pictures().values())).astype(np.float32) / 127.5 - 1
    values, logits = jax.jit(blazeface.BlazeFace().apply)(variables, images)
    stored = np.load(REFERENCE)
    for number, name in enumerate(pictures()):
        for ours, theirs in ((values[number], stored[f"{name}_values"]), (logits[number], stored[f"{name}_logits"])):
            np.testing.assert_allclose(ours[::3, ::3], theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("stride", [1, 2])
def test_shifted_products_are_the_grouped_convolution(stride):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(2, 12, 12, 5)), jnp.float32)
    kernel, bias = generator.normal(size=(3, 3, 5)).astype(np.float32), generator.normal(size=5).astype(np.float32)
    ours = blazeface.Depthwise(stride).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    grouped = lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=5,
    )
    np.testing.assert_allclose(ours, grouped + bias, rtol=1e-5, atol=1e-5)


def test_cells_are_where_they_say(variables):
    # If all weights but the box's biases are zero, each cell says the same relative to its own centre.
    zeros = jax.tree.map(np.zeros_like, variables)
    sizes = np.zeros(16, np.float32)
    sizes[:6] = 19.2, 0, 48, 96, -4.8, 9.6  # centre, sides and the first keypoint, in pixels
    zeros["params"]["box"]["bias"] = sizes
    cells = jax.jit(blazeface.detect)(zeros, np.zeros((1, 192, 192, 3), np.uint8))
    assert cells.boxes.shape == (1, 2304, 4)
    assert cells.keypoints.shape == (1, 2304, 6, 2)
    centre = np.array([5.5 / 48, 2.5 / 48])  # of the sixth cell of the third row
    number = 2 * 48 + 5
    x, y = centre
    np.testing.assert_allclose(cells.boxes[0, number], [x + 0.1 - 0.125, y - 0.25, 0.25, 0.5], atol=1e-6)
    np.testing.assert_allclose(cells.keypoints[0, number, 0], [x - 0.025, y + 0.05], atol=1e-6)
    np.testing.assert_allclose(cells.keypoints[0, number, 1], centre, atol=1e-6)
    np.testing.assert_array_equal(cells.scores[0], 0.5)
