"""What a trained network knows of an image before its last layer."""

import functools
from collections.abc import Callable

import flax.linen as nn

from fer_jax.inference.preprocessing import VIEWS, Preprocessing, predict_views
from fer_jax.models import resnet


def make_features(model: resnet.ResNet, preprocessing: Preprocessing) -> Callable:
    """Returns `features(variables, uint8 images) -> float32 [batch, d]`, the inputs of the network's head.

    They are those of the image itself, or of its centre crop where the network is shown crops: of one picture, also
    where the network's view has several.
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

    # The network stays as it is, and what is compiled leaves out the head, whose result nobody reads.
    with nn.intercept_methods(catch):
        model.apply(variables, images, train=False)
    return caught[0]
