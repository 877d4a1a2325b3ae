"""The native convolution, compared with XLA's by value and with itself bit by bit."""

import functools
import math
import os
import subprocess
import sys
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fer_jax.models import conv as conv_lib
from fer_jax.native import build, conv
from tests.support import native

NHWC = ("NHWC", "HWIO", "NHWC")


def reference(x, kernel, stride, pad):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=NHWC, precision="highest"
    )


def normal(shape, seed: int, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32).astype(dtype)


def all_passes(function, x, kernel, stride, pad, *, dtype=None):
    """Returns the convolution y of x, and the gradients of x and the kernel; y's gradient has the values of `dtype`."""
    y, vjp = jax.vjp(lambda x, kernel: function(x, kernel, stride, pad), x, kernel)
    return y, *vjp(normal(y.shape, 2, dtype or x.dtype).astype(y.dtype))


def ours_and_theirs(x, kernel, stride, pad):
    """Returns all passes of the native convolution, and of XLA's in float32 with the values that ours reads."""
    rounded = kernel.astype(x.dtype).astype(jnp.float32)
    theirs = all_passes(reference, x.astype(jnp.float32), rounded, stride, pad, dtype=x.dtype)
    return all_passes(conv.convolve, x, kernel, stride, pad), theirs


def assert_equal_but_for_rounding(ours, theirs, dtype):
    """Asserts equality up to rounding.

    ours: y, dx and dW in `dtype`, `dtype` and float32, or the first of them. theirs: the values of `reference`.
    """
    for values, exact, of in zip(ours, theirs, (dtype, dtype, "float32")[: len(ours)], strict=True):
        assert values.dtype == of
        # float32 sums of up to 10,000 rounded products err by some hundred units in the last place of the largest.
        # In bfloat16 the sum is rounded once more, by half a unit, at most 2**-8 of a value.
        bound = 2e-5 + (2**-8 if of == "bfloat16" else 0)
        exact = exact.astype(jnp.float32)
        largest = float(jnp.abs(exact).max())
        np.testing.assert_allclose(values.astype(jnp.float32), exact, rtol=0, atol=bound * largest + 1e-6)


class Shape(NamedTuple):
    """A convolution of images [batch, height, width, channels[0]] by a window [size, size, *channels]."""

    batch: int
    height: int
    width: int
    channels: tuple[int, int]
    size: int
    stride: int
    padded: bool


@st.composite
def shapes(draw):
    batch, size, padded = (draw(st.sampled_from(of)) for of in ([1, 2, 3, 5, 17, 40], [1, 3, 7], [False, True]))
    channels = draw(st.tuples(*[st.sampled_from([1, 3, 7, 16, 24, 64, 200])] * 2))
    # The more products per pixel, the fewer pixels, but at least as many as the window has if there is no padding.
    smallest = 1 if padded else size
    largest = math.isqrt(2 * 10**8 // (batch * size**2 * channels[0] * channels[1]))
    sides = st.integers(smallest, max(smallest, min(20, largest)))
    return Shape(batch, draw(sides), draw(sides), channels, size, draw(st.sampled_from([1, 2])), padded)


def any_shape(test):
    """Decorates a test to run on random shapes, few since XLA compiles each, and always on the three shapes below."""
    checks = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.differing_executors]
    settings = hypothesis.settings(deadline=None, max_examples=12, suppress_health_check=checks)
    test = settings(hypothesis.given(shape=shapes())(test))
    for shape in (
        # A single image, whose rows the threads share, and a window that is larger than its padding.
        Shape(1, 4, 3, (1, 1), 3, 1, padded=False),
        Shape(40, 9, 8, (16, 24), 3, 2, padded=True),  # more images than threads
        Shape(2, 6, 7, (200, 200), 3, 1, padded=True),  # more channels than a block has
    ):
        test = hypothesis.example(shape=shape)(test)
    return test


@any_shape
def test_values_and_gradients_are_those_of_xla(native_dtype, shape):
    batch, height, width, channels, size, stride, padded = shape
    pad = size // 2 if padded else 0
    x, kernel = normal((batch, height, width, channels[0]), 0, native_dtype), normal((size, size, *channels), 1)
    assert_equal_but_for_rounding(*ours_and_theirs(x, kernel, stride, pad), native_dtype)


def exact(values):
    return np.asarray(values.astype(jnp.float32), np.float64)


def assert_means(means, *values):
    for ours, of in zip(means, values, strict=True):
        flat = of.reshape(-1, of.shape[-1])
        np.testing.assert_allclose(ours, flat.mean(0), rtol=0, atol=1e-5 * np.abs(flat).mean() + 1e-6)


@any_shape
def test_a_norm_that_rides_along_does_what_one_before_does(native_dtype, shape):
    batch, height, width, channels, size, stride, padded = shape
    pad = size // 2 if padded else 0
    raw = normal((batch, height, width, channels[0]), 0, native_dtype)
    kernel = normal((size, size, *channels), 1).astype(native_dtype)
    norm = normal((3, channels[0]), 3)
    normalized = exact(raw) * exact(norm[0]) + exact(norm[1])
    active = jnp.maximum(jnp.float32(normalized), 0).astype(native_dtype)
    settings = stride, pad

    y, moments = conv.forward(raw, kernel, *settings, norm=norm, with_moments=True)
    dy = normal(y.shape, 4, native_dtype)
    dx = conv.input_gradient(dy, kernel, raw.shape, *settings)
    passes = y, *conv.normalized_input_gradient(dy, kernel, raw, norm, *settings)
    dkernel = conv.kernel_gradient(raw, dy, kernel.shape, *settings, norm=norm)
    theirs = conv.forward(active, kernel, *settings)[0], dx, conv.kernel_gradient(active, dy, kernel.shape, *settings)
    np.testing.assert_array_equal(exact(passes[1]), np.where(normalized > 0, exact(dx), 0))
    assert_equal_but_for_rounding((y, dx, dkernel), theirs, native_dtype)
    assert_means(moments, exact(y), exact(y) ** 2)
    centred = exact(raw) - exact(norm[2])
    assert_means(passes[2], exact(passes[1]), exact(passes[1]) * centred)

    # With a shortcut, the output that was written isn't what the norm alone makes of raw.
    active, others = normal(raw.shape, 5, native_dtype), normal(raw.shape, 6, native_dtype)
    sums = conv.normalized_input_gradient(dy, kernel, raw, norm, *settings, active=active, others=others)
    expected = jnp.where(active > 0, dx.astype(jnp.float32) + others, 0)
    # Here dx is rounded before `others` is added; the native code rounds only the sum.
    bound = (1e-6 if native_dtype == "float32" else 2**-6) * max(1, float(jnp.abs(dx).max()))
    np.testing.assert_allclose(exact(sums[0]), exact(expected), rtol=0, atol=bound)
    assert_means(sums[1], exact(sums[0]), exact(sums[0]) * centred)


@any_shape
def test_an_activated_convolution_is_that_of_a_trained_network(native_dtype, shape):
    batch, height, width, channels, size, stride, padded = shape
    x, bias = normal((batch, height, width, channels[0]), 0, native_dtype), normal((channels[1],), 1)
    kernel = normal((size, size, *channels), 2).astype(native_dtype)
    bare = reference(x.astype(jnp.float32), kernel.astype(jnp.float32), stride, size // 2) + bias
    shortcut = normal(bare.shape, 3, native_dtype)
    packed = conv.pack(kernel)
    activate = functools.partial(conv.activate, packed=packed, bias=bias, size=size, stride=stride)
    if padded:
        y, expected = activate(x, shortcut=shortcut, relu=True), jnp.maximum(bare + shortcut, 0)
        # A small batch is split among the threads in another way.
        np.testing.assert_array_equal(activate(x[:1], shortcut=shortcut[:1], relu=True), y[:1])
    else:
        y, expected = activate(x, shortcut=None, relu=False), bare
    assert_equal_but_for_rounding([y], [expected], native_dtype)


@pytest.mark.parametrize(
    ("batch", "image", "channels", "size", "stride"),
    [(64, 24, (64, 64), 3, 1), (64, 6, (256, 256), 3, 1), (64, 12, (128, 256), 3, 2), (16, 48, (1, 64), 7, 2)],
)
def test_both_ways_of_summing_over_the_batch_are_right(native_dtype, batch, image, channels, size, stride):
    x, kernel = normal((batch, image, image, channels[0]), 0, native_dtype), normal((size, size, *channels), 1)
    assert_equal_but_for_rounding(*ours_and_theirs(x, kernel, stride, size // 2), native_dtype)


def test_kernels_are_rounded_to_nearest_even_and_what_is_not_finite_stays_so(native_dtype):
    values = np.float32([1.00390625, 1.01171875, 1.0039063, -3e38, 3.4e38, np.inf, -np.inf, np.nan, 0, 5])
    kernel = jnp.asarray(values).reshape(1, 1, 1, -1)
    y = conv.convolve(jnp.ones((1, 1, 1, 1), native_dtype), kernel, 1, 0).ravel()
    np.testing.assert_array_equal(y.astype(jnp.float32), jnp.asarray(values).astype(native_dtype).astype(jnp.float32))


PROGRAM = """
import hashlib, sys
import jax, jax.numpy as jnp, numpy as np
from fer_jax import machine
from fer_jax.native import build, conv, norm
repeats, dtypes, flags = int(sys.argv[1]), sys.argv[2].split(), set(sys.argv[3:])
if flags:
    machine.processor_flags = lambda: flags
build.load()

def passes(x, kernel, stride):
    y, vjp = jax.vjp(lambda x, kernel: conv.convolve(x, kernel, stride, 1), x, kernel)
    dy = jnp.sin(y).astype(y.dtype)
    with_norm = jnp.stack([jnp.linspace(a, 2, x.shape[-1]) for a in (-1.0, 0.1, 1.0)])
    others = conv.forward(x, kernel.astype(x.dtype), stride, 1, norm=with_norm, with_moments=True)
    others += conv.normalized_input_gradient(dy, kernel.astype(x.dtype), x, with_norm, stride, 1)
    packed, options = conv.pack(kernel.astype(x.dtype)), {"size": 3, "stride": stride, "relu": True}
    others += tuple(conv.activate(part, packed, y[0, 0, 0].astype("float32"), None, **options) for part in (x, x[:1]))
    return y, *vjp(dy), *others, norm.moments(y), norm.gradient_means(dy, y, jnp.ones(y.shape[-1]), y)

def many(images, kernels):
    # Independent, so that XLA may run them all at once, on the threads that they want to share.
    return [passes(x, kernel, stride) for x in images for kernel in kernels for stride in (1, 2)]

normal = np.random.default_rng(0).normal
images = [jnp.asarray(normal(size=(n, 13, 13, 24)), dtype) for dtype in dtypes for n in (1, 7, 65)]
kernels = [jnp.asarray(normal(size=(3, 3, 24, out)), jnp.float32) for out in (40, 200)]
many = jax.jit(many)
digests = set()
for _ in range(repeats):
    leaves = jax.tree.leaves(many(images, kernels))
    digests.add(hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest())
print(*digests)
"""


def digests(repeats: int, *, threads: int, dtypes=("float32",), flags=()) -> str:
    """Returns what PROGRAM prints in a process with `threads` XLA threads; flags: replace the processor's flags."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(repeats), " ".join(dtypes), *flags],
        env=os.environ | {"XLA_FLAGS": "", "NPROC": str(threads)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_bits_are_the_same_on_any_number_of_threads_and_under_load():
    native.load()
    loads = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        found = {
            digests(repeats, threads=threads, dtypes=build.dtypes()) for threads, repeats in ((1, 2), (3, 20), (16, 5))
        }
    finally:
        for load in loads:
            load.kill()
    (digest,) = found
    assert len(digest.split()) == 1


def test_every_instruction_set_that_this_processor_has_gives_the_same_bits_in_float32():
    """Covers the sets that `auto` doesn't choose here; a run may also be resumed on another processor."""
    native.load()
    names = [names for names in build.INSTRUCTIONS if set(names) <= set(build.instructions())]
    assert len({digests(1, threads=2, flags=map(build.name_in_linux, flags)) for flags in names}) == 1


def test_devices_that_compute_at_once_compute_the_same(native_dtype):
    x, kernel = normal((16, 10, 10, 16), 0, native_dtype), normal((3, 3, 16, 32), 1)
    together = jax.pmap(lambda x: all_passes(conv.convolve, x, kernel, 1, 1))(x.reshape(8, 2, 10, 10, 16))
    for device in range(8):
        alone = all_passes(conv.convolve, x[2 * device :][:2], kernel, 1, 1)
        for ours, theirs in zip(jax.tree.map(lambda leaf, d=device: leaf[d], together), alone, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_what_it_does_not_cover_is_left_to_matrix_products():
    native.load()
    x, kernel = normal((2, 9, 9, 4), 0), normal((3, 3, 4, 8), 1)
    for change in ({"window_strides": (1, 2)}, {"padding": ((0, 1), (1, 1))}, {"dtype": jnp.float16}):
        dtype = change.pop("dtype", jnp.float32)
        values = {"window_strides": (1, 1), "padding": ((1, 1), (1, 1)), "dimension_numbers": NHWC} | change
        ours = conv_lib.native_conv_general_dilated(x.astype(dtype), kernel.astype(dtype), **values)
        theirs = conv_lib.conv_general_dilated(x.astype(dtype), kernel.astype(dtype), **values)
        np.testing.assert_array_equal(ours, theirs)
    for wrong in ({"feature_group_count": 2}, {"lhs_dilation": (2, 2)}):
        with pytest.raises(NotImplementedError):
            conv_lib.native_conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), **wrong)
    with pytest.raises(TypeError, match="images of 4 channels, and kernels of 3"):
        conv_lib.native_conv_general_dilated(x, kernel[:, :, :3], (1, 1), ((1, 1), (1, 1)), dimension_numbers=NHWC)


@pytest.mark.parametrize(
    ("shape", "size", "pad"),
    [
        ((2, 9, 9, 4), 3, -1),
        ((2, 4, 4, 4), 1, 1),
        ((2, 4, 4, 4), 3, 3),
        ((0, 6, 6, 4), 3, 1),
        ((2, 2, 2, 4), 3, 0),
    ],
    ids=["negative padding", "padding of a pixel", "padding beyond the window", "no images", "no places"],
)
def test_what_no_network_has_is_as_stock_computes_it(shape, size, pad):
    native.load()
    x, kernel = normal(shape, 0), normal((size, size, 4, 8), 1)

    def loss(convolution, x, kernel):
        y = convolution(x, kernel, (1, 1), ((pad, pad), (pad, pad)), dimension_numbers=NHWC)
        return jnp.sum(jnp.sin(y)), y

    for wanted in (0, 1):
        ours, theirs = (
            jax.grad(functools.partial(loss, convolution), wanted, has_aux=True)(x, kernel)
            for convolution in (conv_lib.native_conv_general_dilated, jax.lax.conv_general_dilated)
        )
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_kernel_that_was_packed_for_other_images_is_refused(native_dtype):
    kernel = normal((3, 3, 1, 24), 1, native_dtype)
    x = normal((2, 9, 9, 5), 0, native_dtype)
    with pytest.raises(jax.errors.JaxRuntimeError, match="is not of these images"):
        conv.activate(x, conv.pack(kernel), jnp.zeros(24), None, size=3, stride=1, relu=True)
