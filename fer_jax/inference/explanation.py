"""What a trained network looked at: maps of how much each pixel of a face counts for a class."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.errors import UserError
from fer_jax.inference.trained_model import TrainedModel

_BATCH_SIZE = 16
# The smallest side of Grad-CAM's maps, in positions of a stage.
_MIN_PLACES = 5
# The standard deviation of the Gaussian filter over LayerCAM's maps, as a share of the image's side.
_SIGMA = 1 / 32
# For images of 48 pixels: the side of the patch that occlusion hides, and the distance between patches.
_PATCH, _STRIDE, _OF = 12, 4, 48


def explain(trained: TrainedModel, images: np.ndarray, classes: np.ndarray, method: str = "layercam") -> np.ndarray:
    """Returns how much each pixel counts for a class, float32 [n, height, width], from 0 to 1, each image's maximum.

    The maps are of the whole images, even if the network is shown crops of them.

    Args:
      images: uint8 [n, *image_shape]. classes: int [n], the class to explain for each image, such as the predicted one.
      method: one of METHODS.

    Raises UserError if there is no such method, or the images don't have the network's shape and dtype.
    """
    check(method)
    images, classes = trained.check_images(images), np.asarray(classes)
    if not len(images):
        return np.zeros((0, *images.shape[1:3]), np.float32)
    return _scaled(METHODS[method](trained, images, classes))


def check(method: str) -> None:
    """Raises UserError if there is no such method."""
    if method not in METHODS:
        raise UserError(f"there is no explanation {method!r}; there are {', '.join(METHODS)}")


def stage_maps(trained: TrainedModel, images: np.ndarray, classes: np.ndarray, weight: Callable) -> np.ndarray:
    """Returns a class activation map of each stage, float32 [stages, n, height, width], each from 0 to 1.

    weight: (output, gradient) of a stage, float32 [n, rows, columns, channels] -> the map [n, rows, columns].
    """
    compute, parts = _compiled_maps(trained.model, trained.preprocessing, weight), []
    for first in range(0, len(images), _BATCH_SIZE):
        batch, of_batch = images[first : first + _BATCH_SIZE], classes[first : first + _BATCH_SIZE]
        # Padded, so that only one shape is compiled, whatever the number of images.
        margin = _BATCH_SIZE - len(batch)
        padded = np.pad(batch, ((0, margin), (0, 0), (0, 0), (0, 0))), np.pad(of_batch, (0, margin))
        parts.append(np.asarray(compute(trained.variables, *padded))[:, : len(batch)])
    return _scaled(np.concatenate(parts, axis=1))


@functools.lru_cache(maxsize=8)
def _compiled_maps(model: nn.Module, preprocessing, weight: Callable) -> Callable:
    # With remat, the values that a block computes again for its gradient couldn't be recorded here.
    model = model.clone(remat=False)
    last_blocks = [f"stage{stage}_block{number}" for stage, number in enumerate(model.stage_sizes, 1)]

    def compute(variables, images, classes):
        pictures = preprocessing(images)

        def score(deltas):
            outputs = {}

            def add(call, args, kwargs, context):
                result, name = call(*args, **kwargs), context.module.name
                if name in last_blocks and context.method_name == "__call__":
                    # Adding zeros gives the gradient of a value inside the network without any change to the network.
                    result = outputs[name] = result + deltas.get(name, 0)
                return result

            with nn.intercept_methods(add):
                logits = model.apply(variables, pictures, train=False)
            return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), outputs

        _, shapes = jax.eval_shape(score, {})
        zeros = {name: jnp.zeros(like.shape, like.dtype) for name, like in shapes.items()}
        gradients, outputs = jax.grad(score, has_aux=True)(zeros)
        maps = [weight(outputs[name].astype(jnp.float32), gradients[name].astype(jnp.float32)) for name in last_blocks]
        return jnp.stack([jax.image.resize(each, images.shape[:3], "bilinear") for each in maps])

    return jax.jit(compute)


def weight_places(output, gradient):
    """Weights each place of each channel by itself: LayerCAM (Jiang et al. 2021, doi 10.1109/TIP.2021.3089943)."""
    return jax.nn.relu(jnp.sum(jax.nn.relu(gradient) * output, axis=-1))


def weight_channels(output, gradient):
    """Weights each channel by its mean gradient: Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391)."""
    return jax.nn.relu(jnp.sum(jnp.mean(gradient, axis=(1, 2), keepdims=True) * output, axis=-1))


def _layercam(trained: TrainedModel, images, classes) -> np.ndarray:
    """Returns the mean of all stages' maps, which is more faithful than any of them (docs/use.md)."""
    from scipy import ndimage  # takes a quarter of a second to import, which a prediction needn't wait for

    maps = stage_maps(trained, images, classes, weight_places)
    # Strides leave a pattern of single positions in the maps of early stages.
    sigma = min(maps.shape[-2:]) * _SIGMA
    return _scaled(ndimage.gaussian_filter(maps, (0, 0, sigma, sigma))).mean(axis=0)


def _gradcam(trained: TrainedModel, images, classes) -> np.ndarray:
    shapes = jax.eval_shape(
        lambda: trained.model.apply(
            trained.variables, jnp.zeros((1, *images.shape[1:])), train=False, mutable=["intermediates"]
        )
    )[1]["intermediates"]
    sizes = [min(shapes[f"stage{number}"][0].shape[1:3]) for number in range(1, 1 + len(trained.model.stage_sizes))]
    # The last stage is usual, but a map of too few positions can only tell the face from its surroundings.
    stage = max((number for number, size in enumerate(sizes) if size >= _MIN_PLACES), default=0)
    return stage_maps(trained, images, classes, weight_channels)[stage]


def _scaled(maps: np.ndarray) -> np.ndarray:
    """Returns the maps [..., height, width] divided by their maxima; a map of zeros stays unchanged."""
    greatest = maps.max(axis=(-2, -1), keepdims=True)
    return np.divide(maps, greatest, out=np.zeros(maps.shape, np.float32), where=greatest > 0)


def _occlusion(trained: TrainedModel, images, classes) -> np.ndarray:
    """Returns how far the class's probability falls if a patch hides a pixel, on average over patches.

    Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901.
    """
    height, width = images.shape[1:3]
    patch, stride = (max(1, round(size * min(height, width) / _OF)) for size in (_PATCH, _STRIDE))
    # Patches begin outside the border, so that each pixel is covered by the same number of them.
    tops, lefts = (range(stride - patch, size, stride) for size in (height, width))
    maps = []
    for image, of_class in zip(images, classes, strict=True):
        places = [
            (slice(max(0, top), top + patch), slice(max(0, left), left + patch)) for top in tops for left in lefts
        ]
        hidden = np.repeat(image[None], len(places) + 1, axis=0)
        for one, place in zip(hidden[1:], places, strict=True):
            one[place] = np.round(image.mean(axis=(0, 1)))
        probabilities = trained.probabilities(hidden)[:, of_class]
        total, count = np.zeros((height, width)), np.zeros((height, width))
        for place, fall in zip(places, probabilities[0] - probabilities[1:], strict=True):
            total[place] += fall
            count[place] += 1
        maps.append(np.maximum(total / count, 0))
    return np.stack(maps)


METHODS: dict[str, Callable] = {"layercam": _layercam, "gradcam": _gradcam, "occlusion": _occlusion}
