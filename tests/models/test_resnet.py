import functools
import math
import pathlib
import runpy

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.models import conv, resnet
from fer_jax.models.resnet import ARCHITECTURES, ResNet
from fer_jax.recipe.state import num_parameters

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "resnet50.py"
PAPER_STEM = {"stem_kernel": 7, "stem_stride": 2, "stem_pool": True}
EPSILON = 1e-5


@functools.cache
def abstract(model: ResNet, size: int = 48):
    """Returns the shapes and dtypes of (logits, variables), with intermediates, without computing anything."""
    init = functools.partial(model.init_with_output, train=False, mutable=True)
    return jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32))


def of_depth(depth: int, **kwargs) -> ResNet:
    return ResNet(*ARCHITECTURES[depth], **kwargs)


def named_leaves(tree):
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def counted_by_hand(stage_sizes, bottleneck) -> int:
    """Adds up the parameters of He et al.'s table 1, for one input channel and seven classes."""

    def conv_and_norm(kernel, features_in, features):
        return kernel**2 * features_in * features + 2 * features

    total, channels = conv_and_norm(7, 1, 64), 64
    for stage, num_blocks in enumerate(stage_sizes):
        width = 64 << stage
        out = 4 * width if bottleneck else width
        for block in range(num_blocks):
            if bottleneck:
                total += conv_and_norm(1, channels, width) + conv_and_norm(3, width, width)
                total += conv_and_norm(1, width, out)
            else:
                total += conv_and_norm(3, channels, width) + conv_and_norm(3, width, out)
            if block == 0 and channels != out:
                total += conv_and_norm(1, channels, out)
            channels = out
    return total + (channels + 1) * 7


@pytest.mark.parametrize(
    ("depth", "number"),
    [(10, 4_903_111), (18, 11_173_831), (34, 21_281_991), (50, 23_516_103), (101, 42_508_231), (152, 58_151_879)],
)
def test_number_of_parameters(depth, number):
    params = abstract(of_depth(depth))[1]["params"]
    assert num_parameters(params) == number == counted_by_hand(*ARCHITECTURES[depth])


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(
    ("stem", "sizes"),
    [((7, 2, True), (12, 12, 6, 3, 2)), ((3, 2, False), (24, 24, 12, 6, 3)), ((3, 1, False), (48, 48, 24, 12, 6))],
    ids=["7/2/pool", "3/2/none", "3/1/none"],
)
def test_shape_after_the_stem_and_every_stage(depth, stem, sizes):
    model = of_depth(depth, **dict(zip(PAPER_STEM, stem, strict=True)))
    logits, variables = abstract(model)
    outputs = ["stem", "stage1", "stage2", "stage3", "stage4"]
    channels = [64, 64, 128, 256, 512] if depth == 18 else [64, 256, 512, 1024, 2048]
    assert {name: output.shape for name, (output,) in variables["intermediates"].items()} == {
        name: (2, size, size, features) for name, size, features in zip(outputs, sizes, channels, strict=True)
    }
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)


@pytest.mark.parametrize("depth", [18, 50])
def test_no_convolution_has_a_bias(depth):
    leaves = named_leaves(abstract(of_depth(depth))[1]["params"])
    kernels = {name.removesuffix("/kernel") for name, leaf in leaves.items() if leaf.ndim == 4}
    assert len(kernels) == {18: 20, 50: 53}[depth]
    assert not {f"{name}/bias" for name in kernels} & leaves.keys()
    assert "head/bias" in leaves


# The same network again, in float64 and NumPy.


def numpy_conv(x, kernel, stride):
    pad = kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((x.shape[axis] - kernel.shape[0]) // stride + 1 for axis in (1, 2))
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i, j in np.ndindex(*kernel.shape[:2]):
        seen = x[:, i : i + stride * height : stride, j : j + stride * width : stride][:, :height, :width]
        y += np.einsum("bhwi,io->bhwo", seen, kernel[i, j])
    return y


def numpy_max_pool(x):
    height, width = x.shape[1] // 2, x.shape[2] // 2  # for even sizes
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.max([x[:, i : i + 2 * height : 2, j : j + 2 * width : 2] for i, j in np.ndindex(3, 3)], axis=0)


class NumpyResNet:
    """Runs the variables of a ResNet; `new_stats` holds the running statistics after a training pass."""

    def __init__(self, model: ResNet, variables, *, train: bool):
        self.model, self.train = model, train
        to_float64 = functools.partial(jax.tree.map, lambda leaf: np.asarray(leaf, np.float64))
        self.params = named_leaves(to_float64(variables["params"]))
        self.stats = named_leaves(to_float64(variables["batch_stats"]))
        self.new_stats = dict(self.stats)

    def norm(self, x, name):
        mean, var = self.stats[f"{name}/mean"], self.stats[f"{name}/var"]
        if self.train:
            batch_mean, batch_var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            self.new_stats[f"{name}/mean"] = 0.9 * mean + 0.1 * batch_mean
            self.new_stats[f"{name}/var"] = 0.9 * var + 0.1 * batch_var
            mean, var = batch_mean, batch_var
        return (x - mean) / np.sqrt(var + EPSILON) * self.params[f"{name}/scale"] + self.params[f"{name}/bias"]

    def conv(self, x, name, stride=1):
        return numpy_conv(x, self.params[f"{name}/kernel"], stride)

    def block(self, x, name, stride):
        strides = [1, stride, 1] if self.model.bottleneck else [stride, 1]
        y = x
        for i, conv_stride in enumerate(strides):
            y = self.norm(self.conv(y, f"{name}/Conv_{i}", conv_stride), f"{name}/BatchNorm_{i}")
            if i < len(strides) - 1:
                y = np.maximum(y, 0)
        if f"{name}/shortcut_conv/kernel" in self.params:
            x = self.norm(self.conv(x, f"{name}/shortcut_conv", stride), f"{name}/shortcut_norm")
        return np.maximum(x + y, 0)

    def __call__(self, images):
        x = self.conv(images.astype(np.float64), "stem_conv", self.model.stem_stride)
        x = np.maximum(self.norm(x, "stem_norm"), 0)
        if self.model.stem_pool:
            x = numpy_max_pool(x)
        for stage, num_blocks in enumerate(self.model.stage_sizes, 1):
            for block in range(1, num_blocks + 1):
                x = self.block(x, f"stage{stage}_block{block}", 2 if stage > 1 and block == 1 else 1)
        return x.mean((1, 2)) @ self.params["head/kernel"] + self.params["head/bias"]


BASIC = ResNet((1, 1, 1, 1), bottleneck=False, width=4)
BOTTLENECK = ResNet((1, 2, 1, 1), bottleneck=True, width=4, stem_kernel=3, stem_pool=False)
IMAGES = np.random.default_rng(1).uniform(size=(4, 24, 24, 1)).astype(np.float32)


@functools.cache
def random_variables(model: ResNet):
    """Fills the variables with values none of which is neutral, so that an unused variable changes the result."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        draw = {
            "kernel": lambda: rng.normal(0, math.sqrt(2 / math.prod(leaf.shape[:-1])), leaf.shape),
            "scale": lambda: rng.uniform(0.5, 1.5, leaf.shape),
            "bias": lambda: rng.normal(0, 0.2, leaf.shape),
            "mean": lambda: rng.normal(0, 0.2, leaf.shape),
            "var": lambda: rng.uniform(0.5, 2, leaf.shape),
        }[path[-1].key]
        return draw().astype(np.float32)

    variables = abstract(model, IMAGES.shape[1])[1]
    return jax.tree_util.tree_map_with_path(fill, {key: variables[key] for key in ("params", "batch_stats")})


@functools.partial(jax.jit, static_argnums=0)
def train_and_eval(model, variables, images):
    trained = model.apply(variables, images, train=True, mutable=["batch_stats"])
    return trained, model.apply(variables, images, train=False)


@pytest.mark.parametrize(
    "model",
    [BASIC.clone(conv_fn=conv.conv_general_dilated), BASIC, BOTTLENECK.clone(conv_fn=conv.conv_general_dilated)],
    ids=["basic, matmul", "basic, lax", "bottleneck, matmul"],
)
def test_forward_pass_equals_numpy(model):
    variables = random_variables(model)
    (train_logits, mutated), eval_logits = train_and_eval(model, variables, IMAGES)

    expected = NumpyResNet(model, variables, train=False)
    np.testing.assert_allclose(eval_logits, expected(IMAGES), rtol=1e-4, atol=1e-4)

    expected = NumpyResNet(model, variables, train=True)
    np.testing.assert_allclose(train_logits, expected(IMAGES), rtol=1e-4, atol=1e-4)
    new_stats = named_leaves(mutated["batch_stats"])
    assert new_stats.keys() == expected.new_stats.keys()
    for name, value in expected.new_stats.items():
        np.testing.assert_allclose(new_stats[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        assert np.abs(value - expected.stats[name]).max() > 1e-3, f"{name} would not show if it was not updated"


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    model = BOTTLENECK.clone(dtype=jnp.bfloat16)
    logits, variables = abstract(model, IMAGES.shape[1])
    assert {output.dtype for (output,) in variables["intermediates"].values()} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves([variables["params"], variables["batch_stats"]])} == {
        jnp.dtype("float32")
    }
    assert logits.dtype == jnp.float32

    model = model.clone(conv_fn=conv.conv_general_dilated)
    variables = random_variables(BOTTLENECK)
    (train_logits, mutated), _ = train_and_eval(model, variables, IMAGES)
    assert train_logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(mutated)} == {jnp.dtype("float32")}
    expected = NumpyResNet(model, variables, train=True)(IMAGES)
    error = np.abs(train_logits - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.1  # less would mean that nothing is computed in bfloat16


@pytest.mark.parametrize("zero_init", [True, False])
def test_a_block_is_its_shortcut_at_start_only_with_zero_init(zero_init):
    model = ResNet((1, 1), bottleneck=False, width=8, stem_kernel=3, stem_pool=False, zero_init=zero_init)
    init = jax.jit(functools.partial(model.init_with_output, train=False, mutable=True))
    _, variables = init(jax.random.key(0), IMAGES[:, :8, :8])
    outputs = {name: np.asarray(output) for name, (output,) in variables["intermediates"].items()}

    # Stage 1 has no projection: its block's shortcut is its input. Running statistics are mean 0, variance 1.
    assert np.array_equal(outputs["stage1"], outputs["stem"]) == zero_init
    projection = np.asarray(variables["params"]["stage2_block1"]["shortcut_conv"]["kernel"])
    shortcut = np.maximum(numpy_conv(outputs["stage1"], projection, 2) / math.sqrt(1 + EPSILON), 0)
    assert np.allclose(outputs["stage2"], shortcut, rtol=1e-4, atol=1e-5) == zero_init

    for name, leaf in named_leaves(variables["params"]).items():
        if leaf.ndim == 4:  # He et al. 2015, by fan-out; the bound is four standard errors
            deviation = np.std(leaf) / math.sqrt(2 / (leaf.shape[0] * leaf.shape[1] * leaf.shape[3]))
            assert abs(deviation - 1) < 4 / math.sqrt(2 * leaf.size), name


def test_make_assembles_what_the_config_says():
    config = runpy.run_path(str(CONFIG))["get_config"]().model
    config.update(dtype="bfloat16", conv="matmul")
    assert resnet.make(config, num_classes=7, axis_name="data") == ResNet(
        stage_sizes=(3, 4, 6, 3),
        bottleneck=True,
        num_classes=7,
        width=64,
        **PAPER_STEM,
        zero_init=False,
        dtype=jnp.dtype("bfloat16"),
        axis_name="data",
        conv_fn=conv.conv_general_dilated,
    )
    config.update(
        depth=18, width=8, stem_kernel=3, stem_stride=1, stem_pool=False, zero_init=True, dtype="float32",
        sync_batch_norm=False, conv="lax",
    )  # fmt: skip
    assert resnet.make(config, num_classes=5, axis_name="data") == ResNet(
        stage_sizes=(2, 2, 2, 2),
        bottleneck=False,
        num_classes=5,
        width=8,
        stem_kernel=3,
        stem_stride=1,
        stem_pool=False,
        zero_init=True,
        dtype=jnp.dtype("float32"),
        axis_name=None,
        conv_fn=jax.lax.conv_general_dilated,
    )


@pytest.mark.parametrize(
    ("conv_name", "platform", "num_convolutions"), [("lax", "cuda", 20), ("lax", "tpu", 20), ("matmul", "cpu", 0)]
)
def test_the_convolutions_of_the_config_are_lowered(conv_name, platform, num_convolutions):
    config = runpy.run_path(str(CONFIG))["get_config"]().model
    config.update(depth=18, dtype="bfloat16", conv=conv_name)
    model = resnet.make(config, num_classes=7, axis_name=None)
    _, variables = abstract(model)
    step = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    images = jax.ShapeDtypeStruct((2, 48, 48, 1), jnp.float32)
    variables = {key: variables[key] for key in ("params", "batch_stats")}
    lowered = jax.export.export(step, platforms=(platform,))(variables, images).mlir_module()
    assert lowered.count("stablehlo.convolution") == num_convolutions
    assert lowered.count("stablehlo.dot_general") == 21 - num_convolutions


# Options of a recipe for the blocks and the head.

SMALL = {
    "stage_sizes": (1, 1, 1),
    "bottleneck": False,
    "width": 4,
    "stem_kernel": 3,
    "stem_stride": 1,
    "stem_pool": False,
}


@functools.cache
def applied(number: int = 6, *, train: bool = True, key: int | None = 0, **kwargs):
    """Returns the logits of `number` equal images, with the same weights for the same kwargs."""
    model = ResNet(**SMALL, **kwargs)
    images = jnp.broadcast_to(jax.random.uniform(jax.random.key(1), (1, 16, 16, 1)), (number, 16, 16, 1))
    variables = model.init(jax.random.key(2), images, train=False)
    keys = None if key is None else jax.random.split(jax.random.key(key), number)
    if not train:
        return model.apply(variables, images, train=False, keys=keys)
    return model.apply(variables, images, train=True, keys=keys, mutable=["batch_stats"])[0]


def test_squeeze_excitation_scales_channels_by_a_function_of_their_means():
    layer, x = resnet.SqueezeExcitation(), jax.random.normal(jax.random.key(0), (3, 5, 5, 32))
    variables = layer.init(jax.random.key(1), x)
    squeeze, excite = (variables["params"][name] for name in ("squeeze", "excite"))
    assert squeeze["kernel"].shape == (32, 8)
    means = np.asarray(x, np.float64).mean(axis=(1, 2))
    hidden = np.maximum(means @ np.asarray(squeeze["kernel"]) + squeeze["bias"], 0)
    factors = 1 / (1 + np.exp(-(hidden @ np.asarray(excite["kernel"]) + excite["bias"])))
    np.testing.assert_allclose(layer.apply(variables, x), x * factors[:, None, None], rtol=1e-5, atol=1e-6)


def test_a_network_with_squeeze_excitation_has_it_in_every_block():
    params = abstract(ResNet(**SMALL, squeeze_excitation=True), 16)[1]["params"]
    assert sum("squeeze_excitation" in block for block in params.values()) == 3
    assert not np.allclose(applied(squeeze_excitation=True), applied())


@pytest.mark.parametrize("kwargs", [{"stochastic_depth": 0.5}, {"dropout": 0.5}], ids=str)
def test_what_is_dropped_is_drawn_for_each_image_and_in_training_only(kwargs):
    drawn = np.asarray(applied(**kwargs))
    assert len(np.unique(drawn.round(4), axis=0)) > 2
    np.testing.assert_array_equal(drawn, applied(**kwargs))
    assert not np.allclose(drawn, applied(key=7, **kwargs))
    # Outside training, or without keys, every image is treated alike.
    for alike in (applied(train=False, **kwargs), applied(key=None, **kwargs)):
        np.testing.assert_allclose(alike, np.broadcast_to(alike[:1], alike.shape), atol=1e-6)
    np.testing.assert_allclose(applied(train=False, **kwargs), applied(train=False), rtol=1e-5, atol=1e-6)


def test_dropping_keeps_the_mean():
    keys = jax.random.split(jax.random.key(0), 4000)
    dropped = np.asarray(resnet._drop(keys, jnp.ones((4000, 2, 2, 3)), 0.25, (1, 1, 1)))
    assert set(np.unique(dropped.round(5))) == {0, np.float32(1 / 0.75).round(5)}
    assert dropped.mean() == pytest.approx(1, abs=0.03)
    # An image is dropped as a whole or not at all.
    assert (np.ptp(dropped, axis=(1, 2, 3)) == 0).all()


def test_stochastic_depth_grows_from_nothing_in_the_first_block_to_its_rate_in_the_last():
    seen = []

    def watch(next_fun, args, kwargs, context):
        if isinstance(context.module, resnet.Block):
            seen.append(context.module.drop_rate)
        return next_fun(*args, **kwargs)

    with resnet.nn.intercept_methods(watch):
        abstract(ResNet(**SMALL, stochastic_depth=0.3), 16)
    assert seen == pytest.approx([0, 0.15, 0.3])


def test_the_running_statistics_keep_the_share_that_is_asked_for():
    images = jax.random.uniform(jax.random.key(1), (4, 16, 16, 1))
    means = []
    for momentum in (0.9, 0.6):
        model = ResNet(**SMALL, batch_norm_momentum=momentum)
        variables = model.init(jax.random.key(2), images, train=False)
        stats = model.apply(variables, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]
        means.append(stats["stem_norm"]["mean"])
    np.testing.assert_allclose(means[1], 4 * means[0], rtol=1e-4)
