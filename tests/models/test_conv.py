import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fer_jax.models import conv
from fer_jax.models.resnet import ARCHITECTURES, ResNet

NHWC = ("NHWC", "HWIO", "NHWC")
STEMS = ((7, 2, True), (3, 2, False), (3, 1, False))


@pytest.fixture(scope="module")
def convolutions():
    """Returns every distinct (image size, kernel shape, strides, padding) of the six networks with each stem.

    The images are 48 x 48. 18 and 34 layers have the shapes of 10 layers, 101 and 152 layers those of 50 layers.
    """
    seen = set()

    def record(lhs, rhs, window_strides, padding, **kwargs):
        seen.add((lhs.shape[1:3], rhs.shape, tuple(window_strides), tuple(padding)))
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **kwargs)

    image = jax.ShapeDtypeStruct((1, 48, 48, 1), jnp.float32)
    for stage_sizes, bottleneck in (ARCHITECTURES[depth] for depth in (10, 50)):
        for kernel, stride, pool in STEMS:
            model = ResNet(
                stage_sizes, bottleneck, stem_kernel=kernel, stem_stride=stride, stem_pool=pool, conv_fn=record
            )
            jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
    return sorted(seen)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _ours_and_stock(x, kernel, dy, strides, padding):
    """Returns (value, gradient of x, gradient of the kernel) of both convolutions; dy is the gradient of the value."""

    def run(conv_fn):
        y, gradients = jax.vjp(lambda x, k: conv_fn(x, k, strides, padding, dimension_numbers=NHWC), x, kernel)
        return y, *gradients(dy)

    return run(conv.conv_general_dilated), run(lax.conv_general_dilated)


def _assert_equals_stock(image_shape, kernel_shape, strides, padding, *, dtype=jnp.float32, tolerance=1e-5):
    """Compares our convolution with XLA's; errors are relative to the largest value, since sums cancel."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=image_shape), dtype)
    kernel = jnp.asarray(rng.normal(size=kernel_shape), dtype)
    value = jax.eval_shape(lambda x, k: lax.conv_general_dilated(x, k, strides, padding, None, None, NHWC), x, kernel)
    dy = jnp.asarray(rng.normal(size=value.shape), dtype)
    for name, ours, stock in zip(
        ("value", "image gradient", "kernel gradient"), *_ours_and_stock(x, kernel, dy, strides, padding), strict=True
    ):
        assert (ours.shape, ours.dtype) == (stock.shape, dtype)
        ours, stock = np.asarray(ours, np.float64), np.asarray(stock, np.float64)
        message = f"{name} of {image_shape} * {kernel_shape}, strides {strides}, padding {padding}"
        np.testing.assert_allclose(ours, stock, rtol=0, atol=tolerance * max(1, np.abs(stock).max()), err_msg=message)


def test_networks_use_the_convolutions_of_the_paper(convolutions):
    """Guards the tests below against comparing nothing."""
    kinds = {(kernel[:2], strides) for _, kernel, strides, _ in convolutions}
    assert kinds == {((7, 7), (2, 2)), ((3, 3), (1, 1)), ((3, 3), (2, 2)), ((1, 1), (1, 1)), ((1, 1), (2, 2))}
    assert {size for size, *_ in convolutions} == {(n, n) for n in (48, 24, 12, 6, 3, 2)}
    assert ((2, 2), (1, 1, 512, 2048), (1, 1), ((0, 0), (0, 0))) in convolutions
    assert ((48, 48), (7, 7, 1, 64), (2, 2), ((3, 3), (3, 3))) in convolutions


def test_every_geometry_of_the_networks_equals_stock(convolutions):
    geometries = {(size, kernel[:2], strides, padding) for size, kernel, strides, padding in convolutions}
    for size, window, strides, padding in sorted(geometries):
        _assert_equals_stock((2, *size, 3), (*window, 3, 5), strides, padding)


def test_the_widest_convolution_of_each_kind_equals_stock(convolutions):
    widest = {}
    for size, kernel, strides, padding in sorted(convolutions, key=lambda shape: shape[1][2] * shape[1][3]):
        widest[kernel[:2], strides] = (1, *size, kernel[2]), kernel, strides, padding
    for shapes in widest.values():
        _assert_equals_stock(*shapes)


# 6 and 24 divide into the fewest parts that fit the cache, 10 into five instead of three. 7 and 13, primes, are padded.
@pytest.mark.parametrize(
    ("batch", "stride", "num_parts"), [(6, 1, 2), (7, 1, 2), (8, 1, 2), (10, 1, 5), (13, 1, 4), (24, 2, 2)]
)
def test_a_batch_whose_patches_overflow_the_cache_equals_stock(batch, stride, num_parts):
    shape, strides, padding = (batch, 24, 24, 64), (stride, stride), ((1, 1), (1, 1))
    assert conv._num_parts(jnp.zeros(shape), (3, 3), strides, padding) == num_parts
    _assert_equals_stock(shape, (3, 3, 64, 8), strides, padding)


def test_a_batch_of_any_size_is_split_into_few_parts_that_fit_the_cache():
    patch_bytes = 24 * 24 * 9 * 64 * 4  # the patches of one image; the cache holds those of four
    for batch in range(1, 131):
        num_parts = conv._num_parts(np.zeros((batch, 24, 24, 64), np.float32), (3, 3), (1, 1), ((1, 1), (1, 1)))
        images_per_part = -(-batch // num_parts)
        fewest = -(-batch * patch_bytes // conv._CACHE_BYTES)
        assert images_per_part <= 4, batch
        assert num_parts <= 2 * fewest, batch
        assert num_parts * images_per_part - batch < images_per_part, f"{batch}: a part is nothing but padding"
        equal = next(n for n in range(fewest, batch + 1) if batch % n == 0)
        if equal <= 2 * fewest:  # as in version 0.1: the last bits of a run depend on the parts
            assert num_parts == equal, batch
        if batch.bit_count() == 1:
            assert batch % num_parts == 0, batch


@given(st.data())
@settings(max_examples=12)
def test_any_window_stride_and_padding_equals_stock(data):
    window = data.draw(st.tuples(*2 * [st.integers(1, 7)]), "window")
    strides = data.draw(st.tuples(*2 * [st.integers(1, 3)]), "strides")
    padding = data.draw(st.tuples(*2 * [st.tuples(*2 * [st.integers(0, 4)])]), "padding")
    smallest = [max(1, window[axis] - sum(padding[axis])) for axis in (0, 1)]
    size = data.draw(st.tuples(*(st.integers(least, least + 7) for least in smallest)), "size")
    batch, channels, features = data.draw(st.tuples(*3 * [st.integers(1, 3)]), "batch, in, out")
    _assert_equals_stock((batch, *size, channels), (*window, channels, features), strides, padding)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_equals_stock_within_its_precision(stride):
    # With eight bits of mantissa one rounding is 2 ** -9, and a few add up where a gradient is summed from parts.
    _assert_equals_stock(
        (2, 6, 6, 16), (3, 3, 16, 8), (stride, stride), ((1, 1), (1, 1)), dtype=jnp.bfloat16, tolerance=2**-7
    )


@pytest.mark.parametrize("use_bias", [False, True])
def test_flax_conv_gives_the_same_with_it(use_bias):
    layer = functools.partial(nn.Conv, 5, (3, 3), strides=2, padding=1, use_bias=use_bias)
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    stock, ours = layer(), layer(conv_general_dilated=conv.conv_general_dilated)
    variables = stock.init(jax.random.key(0), x)
    np.testing.assert_allclose(ours.apply(variables, x), stock.apply(variables, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        {"feature_group_count": 2, "rhs": (3, 3, 2, 4)},
        {"rhs_dilation": (2, 2)},
        {"rhs_dilation": (1, 2)},
        {"lhs_dilation": (2, 1)},
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW"), "rhs": (4, 8, 3, 3)},
        {"dimension_numbers": ("NHWC", "OIHW", "NHWC"), "rhs": (4, 4, 3, 3)},
        {"dimension_numbers": ("NHWC", "HWIO", "NCHW")},
        {"dimension_numbers": None, "rhs": (4, 8, 3, 3)},  # lax's default is NCHW
    ],
    ids=str,
)
def test_convolutions_of_another_kind_are_refused(other):
    arguments = {"dimension_numbers": NHWC} | other
    kernel = jnp.ones(arguments.pop("rhs", (3, 3, 4, 4)))
    with pytest.raises(NotImplementedError):
        conv.conv_general_dilated(jnp.ones((1, 8, 8, 4)), kernel, (1, 1), ((1, 1), (1, 1)), **arguments)


def test_padding_by_name_is_refused():
    with pytest.raises(NotImplementedError, match="'SAME'"):
        conv.conv_general_dilated(
            jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4)), (1, 1), "SAME", dimension_numbers=NHWC
        )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lax", lax.conv_general_dilated),
        ("matmul", conv.conv_general_dilated),
        ("native", conv.native_conv_general_dilated),
    ],
)
def test_an_implementation_has_one_name(name, expected):
    assert conv.resolve(name) is expected
    assert conv.name_of(expected) == name
