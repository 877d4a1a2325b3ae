"""The trained network as one function of uint8 images, which every exported file contains and is verified against."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fer_jax.inference.preprocessing import Preprocessing, predict_views
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.models.resnet import ResNet

_BATCH_SIZE = 64


def make_function(model: ResNet, preprocessing: Preprocessing) -> Callable:
    """Returns `function(variables, images) -> {"probabilities", "logits", "cam"}`, computed in float32 by XLA alone.

    images: uint8 [batch, height, width, channels]. probabilities, logits: float32 [batch, classes], of the network's
    own view. cam: float32 [batch, classes, rows, columns], the class activation maps of the view's first picture: the
    contribution of each position of the last stage to each logit (Zhou et al. 2016, https://arxiv.org/abs/1512.04150).
    The maps' means plus the head's bias are that picture's logits.
    """
    # The native convolution exists on this machine only, and the mean over devices is for training.
    model = model.clone(dtype=jnp.float32, conv_fn=lax.conv_general_dilated, axis_name=None)
    last_stage, view = f"stage{len(model.stage_sizes)}", preprocessing.view

    def function(variables, images):
        maps = []

        def network(pictures):
            logits, sown = model.apply(variables, pictures, train=False, mutable="intermediates")
            (features,) = sown["intermediates"][last_stage]
            maps.append(jnp.einsum("bijf,fc->bcij", features, variables["params"]["head"]["kernel"]))
            return logits

        logits = predict_views(network, images, [view], preprocessing)[view]
        # One view is one call of `network`, with all first pictures before all second ones.
        (cam,) = maps
        cam = cam.reshape(-1, images.shape[0], *cam.shape[1:])[0]
        return {"probabilities": jax.nn.softmax(logits), "logits": logits, "cam": cam}

    return function


def predict(trained: TrainedModel, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the result of `make_function` for any number of uint8 images, as exactly as the device computes."""
    compiled = jax.jit(make_function(trained.model, trained.preprocessing))
    # By default GPUs round the inputs of float32 products to 10 bits, and TPUs to 7.
    with jax.default_matmul_precision("highest"):
        batches = [images[first : first + _BATCH_SIZE] for first in range(0, len(images), _BATCH_SIZE)]
        parts = [jax.device_get(compiled(trained.variables, batch)) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
