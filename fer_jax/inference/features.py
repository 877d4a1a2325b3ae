"""Features of an image: the inputs of a trained network's last layer."""

import functools
from collections.abc import Callable

import flax.linen as nn

from fer_jax.inference.preprocessing import VIEWS, Preprocessing, predict_views
from fer_jax.models import resnet


def make_features(model: resnet.ResNet, preprocessing: Preprocessing) -> Callable:
    """Returns `features(variables, uint8 images) -> float32 [batch, d]`, the inputs of the network's head.

    They are the features of one picture, even if the network's view has several: the image itself, or its centre crop
    if the network is shown crops.
    """
    view = "centre_crop" if VIEWS[preprocessing.view].is_cropped else "whole"

    def features(variables, images):
        network = functools.partial(_head_inputs, model, variables)
        return predict_views(network, images, [view], preprocessing)[view]

    return features


def _head_inputs(model: resnet.ResNet, variables, images):
    caught = []

    def catch(method, args, kwargs, context):
        if context.module.name == "head" and context.method_name == "__call__":
            caught.append(args[0])
        return method(*args, **kwargs)

    # Interception needs no change to the network, and the compiled program omits the head, as its result is unused.
    with nn.intercept_methods(catch):
        model.apply(variables, images, train=False)
    return caught[0]
