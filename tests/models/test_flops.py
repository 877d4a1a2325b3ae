"""FLOP counts, compared with counts by hand and with XLA's."""

import functools
import types
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from fer_jax.models import conv, flops
from fer_jax.models.resnet import ARCHITECTURES, ResNet

IMAGE_SHAPE = (48, 48, 1)
RESNET_50 = ResNet(*ARCHITECTURES[50])


class Tiny(nn.Module):
    """A 3x3 convolution of stride 2 to 5 channels, and a matrix product with 7 columns."""

    conv_fn: Callable = lax.conv_general_dilated
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.Conv(5, (3, 3), strides=2, padding=1, conv_general_dilated=self.conv_fn)(x)
        return nn.Dense(7)(nn.relu(x).reshape(len(x), -1))


def test_a_tiny_network_is_counted_as_by_hand():
    convolution = 2 * (4 * 3) * (3 * 3 * 2) * 5  # 8x6 pixels become 4x3
    product = 2 * (4 * 3 * 5) * 7
    assert flops.forward_flops(Tiny(), (8, 6, 2)) == convolution + product
    assert flops.training_flops(Tiny(), (8, 6, 2)) == 3 * (convolution + product)


@functools.cache
def expected() -> int:
    return flops.forward_flops(RESNET_50, IMAGE_SHAPE)


@pytest.mark.parametrize(
    "change",
    [{"conv_fn": conv.conv_general_dilated}, {"axis_name": "data"}, {"remat": True}, {"dtype": jnp.bfloat16}],
    ids=lambda change: next(iter(change)),
)
def test_how_a_network_is_computed_changes_nothing(change):
    assert flops.forward_flops(RESNET_50.clone(**change), IMAGE_SHAPE) == expected()


def lower(function: Callable, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def test_resnet_50_agrees_with_xla():
    """XLA also counts operations other than products, about 3%, but no products with padding, which we count."""
    padding = 0

    def record(lhs, rhs, strides, padding_of_axes, **kwargs):
        nonlocal padding
        y = lax.conv_general_dilated(lhs, rhs, strides, padding_of_axes, **kwargs)
        met = [
            sum(0 <= i * stride + tap - low < size for i in range(out) for tap in range(taps))
            for size, out, taps, stride, (low, _) in zip(
                lhs.shape[1:3], y.shape[1:3], rhs.shape[:2], strides, padding_of_axes, strict=True
            )
        ]
        all_taps = y.shape[1] * y.shape[2] * rhs.shape[0] * rhs.shape[1]
        padding += 2 * (all_taps - met[0] * met[1]) * rhs.shape[2] * rhs.shape[3]
        return y

    image = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), jnp.float32)
    variables = jax.eval_shape(lambda x: RESNET_50.init(jax.random.key(0), x, train=False), image)
    forward = lower(functools.partial(RESNET_50.clone(conv_fn=record).apply, train=False), variables, image)
    assert padding > 0.1 * expected()
    assert 1 < forward / (expected() - padding) < 1.03

    def gradient(params, batch_stats, image):
        def loss(params):
            return RESNET_50.apply({"params": params, "batch_stats": batch_stats}, image, train=False).sum()

        return jax.grad(loss)(params)

    training = lower(gradient, variables["params"], variables["batch_stats"], image)
    assert 0.97 < training / (3 * forward) < 1.05


def test_the_peak_is_that_of_all_devices_and_unknown_where_one_is():
    device = {name: types.SimpleNamespace(device_kind=name) for name in ("NVIDIA H100 80GB HBM3", "TPU v4", "cpu")}
    assert flops.peak(8 * [device["NVIDIA H100 80GB HBM3"]]) == 8 * 989e12
    assert flops.peak([device["TPU v4"]]) == 275e12
    assert flops.peak([device["TPU v4"], device["cpu"]]) is None
    assert flops.peak(jax.devices()) is None
