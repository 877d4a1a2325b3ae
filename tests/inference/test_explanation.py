"""Maps of what a network looked at, compared with what is known by other means."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.config import make_config
from fer_jax.errors import UserError
from fer_jax.inference import explanation
from fer_jax.inference.explanation import explain
from fer_jax.inference.preprocessing import Preprocessing
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.models.resnet import ResNet


def make_trained(model: nn.Module, **preprocessing) -> TrainedModel:
    shape = (24, 24, 1)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), jnp.zeros((1, *shape)))
    names = tuple("abcdefg")
    return TrainedModel(model, variables, names, Preprocessing(shape, **preprocessing), make_config(), 1, {})


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    model = ResNet(stage_sizes=(1, 2), bottleneck=False, width=4, stem_kernel=3, stem_stride=1, stem_pool=False)
    return make_trained(model, standardize=True)


IMAGES = np.random.default_rng(0).integers(0, 256, (18, 24, 24, 1), dtype=np.uint8)
CLASSES = np.arange(18) % 7


@pytest.mark.parametrize("method", explanation.METHODS)
def test_maps_are_from_0_to_1_and_have_the_images_size_for_any_number(trained, method):
    maps = explain(trained, IMAGES, CLASSES, method)
    assert maps.shape == (18, 24, 24)
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    # A map may be empty, if nothing in the image supports the class.
    assert set(np.round(maps.max(axis=(1, 2)), 6)) <= {0, 1}
    assert (maps.max(axis=(1, 2)) > 0.99).any()
    np.testing.assert_allclose(explain(trained, IMAGES[:1], CLASSES[:1], method), maps[:1], atol=1e-5)
    assert explain(trained, IMAGES[:0], CLASSES[:0], method).shape == (0, 24, 24)


def test_grad_cam_of_the_last_stage_is_the_head_s_weights_on_its_channels(trained):
    # After a mean and a layer the gradient is the layer's kernel (Zhou et al. 2016, https://arxiv.org/abs/1512.04150).
    pictures = trained.preprocessing(jnp.asarray(IMAGES))
    _, sown = trained.model.apply(trained.variables, pictures, train=False, mutable=["intermediates"])
    output = np.asarray(sown["intermediates"]["stage2"][0])
    kernel = np.asarray(trained.variables["params"]["head"]["kernel"])
    expected = np.maximum(np.einsum("nhwc,cn->nhw", output, kernel[:, CLASSES]), 0)
    expected = np.asarray(jax.image.resize(jnp.asarray(expected), (18, 24, 24), "bilinear"))
    maps = explanation.stage_maps(trained, IMAGES, CLASSES, explanation.weight_channels)[-1]
    np.testing.assert_allclose(maps, expected / expected.max(axis=(1, 2), keepdims=True), atol=1e-5)
    np.testing.assert_allclose(explain(trained, IMAGES, CLASSES, "gradcam"), maps, atol=1e-6)


def test_layercam_weights_each_place_by_its_gradient():
    output = jnp.asarray([[[[1.0, 2.0], [3.0, 4.0]]]])
    gradient = jnp.asarray([[[[0.5, -1.0], [2.0, 1.0]]]])
    np.testing.assert_allclose(explanation.weight_places(output, gradient), [[[0.5, 10.0]]])
    # The channel means are 1.25 and 0: gradients against the class count as well.
    np.testing.assert_allclose(explanation.weight_channels(output, gradient), [[[1.25, 3.75]]])


@pytest.mark.parametrize("remat", [False, True])
def test_the_gradient_of_an_early_stage_is_that_of_the_network(trained, remat):
    # By finite differences: the change of the logit for a small step of the activation at one place.
    trained = dataclasses.replace(trained, model=trained.model.clone(remat=remat))
    maps = explanation.stage_maps(trained, IMAGES[:2], CLASSES[:2], weight_first_place)[0]
    image = trained.preprocessing(jnp.asarray(IMAGES[:2]))

    def logit(step):
        def add(call, args, kwargs, context):
            result = call(*args, **kwargs)
            if context.module.name == "stage1_block1" and context.method_name == "__call__":
                result = result.at[:, 5, 7, 2].add(step)
            return result

        with nn.intercept_methods(add):
            logits = trained.model.clone(remat=False).apply(trained.variables, image, train=False)
        return np.asarray(logits)[np.arange(2), CLASSES[:2]]

    expected = (logit(0.01) - logit(-0.01)) / 0.02
    # Maps are scaled by each image's largest value, so that only the sign of a constant map remains.
    assert (maps.max(axis=(1, 2)) > 0).tolist() == (expected > 0).tolist()


def weight_first_place(output, gradient):
    return jnp.broadcast_to(jax.nn.relu(gradient[:, 5:6, 7:8, 2]), output.shape[:3])


class Stripes(nn.Module):
    """A network whose logits are the brightness of each seventh of an image."""

    dtype = jnp.float32
    conv_fn = jax.lax.conv_general_dilated

    @nn.compact
    def __call__(self, images, *, train):
        return 5 * images[:, :21].reshape(len(images), 7, -1).mean(axis=-1)


def test_occlusion_finds_what_the_network_reads():
    trained = make_trained(Stripes())
    images = np.zeros((7, 24, 24, 1), np.uint8)
    for label, image in enumerate(images):
        image[3 * label : 3 * label + 3] = 255
    for label, found in enumerate(explain(trained, images, np.arange(7), "occlusion")):
        rows = found.mean(axis=1)
        # The patch is a quarter of the side, 6 rows, so the drop of the logit is spread as far.
        assert abs(int(rows.argmax()) - (3 * label + 1)) <= 3
        assert rows[3 * label : 3 * label + 3].mean() > 2 * rows.mean()


def test_another_method_or_image_is_refused(trained):
    with pytest.raises(UserError, match="no explanation 'lime'; there are layercam, gradcam, occlusion"):
        explain(trained, IMAGES, CLASSES, "lime")
    with pytest.raises(UserError, match=r"the images are uint8 \[18, 20, 24, 1\]"):
        explain(trained, IMAGES[:, :20], CLASSES)
