"""Layers whose norms are fused with native convolutions, compared with the same layers in XLA, where none are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fer_jax import parallel
from fer_jax.models.conv import resolve
from fer_jax.models.resnet import ResNet
from tests.support import native

IMAGES = np.random.default_rng(0).uniform(size=(5, 13, 13, 1)).astype(np.float32)
NETS = {
    "basic": {"stage_sizes": (2, 1), "bottleneck": False, "stem_stride": 1},
    "bottleneck": {"stage_sizes": (1, 2), "bottleneck": True, "stem_stride": 1, "stem_pool": False},
    "remat": {"stage_sizes": (1, 2), "bottleneck": True, "stem_stride": 1, "stem_pool": False, "remat": True},
    "large window": {"stage_sizes": (1,), "bottleneck": False, "stem_kernel": 9},
    "own branches": {"stage_sizes": (1, 2), "bottleneck": False, "squeeze_excitation": True, "stochastic_depth": 0.1},
}


def make(net: str, conv: str, **changes) -> ResNet:
    return ResNet(**{"stem_kernel": 3, "width": 24, "conv_fn": resolve(conv)} | NETS[net] | changes)


def trained(model: ResNet, variables, images=IMAGES):
    """Returns the logits, the new statistics, and the gradients of the parameters of one training pass."""

    def loss(params):
        variables_of_step = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, mutated = model.apply(variables_of_step, images, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(3 * logits)), (logits, mutated["batch_stats"])

    gradient, results = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return *results, gradient


@functools.cache
def variables_of(net: str):
    variables = make(net, "lax").init(jax.random.key(0), IMAGES[:1], train=False)
    # Makes sure that no scale and no bias is neutral.
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(variables))))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), variables)


@pytest.mark.parametrize("net", NETS)
def test_training_by_fused_layers_is_training_by_layers(net):
    native.load()
    variables = variables_of(net)
    ours, theirs = (trained(make(net, conv), variables) for conv in ("native", "lax"))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, exact), values in zip(jax.tree_util.tree_leaves_with_path(theirs), jax.tree.leaves(ours), strict=True):
        bound = 2e-4 * float(jnp.abs(exact).max()) + 1e-5
        np.testing.assert_allclose(values, exact, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("net", ["basic", "bottleneck"])
def test_eight_devices_with_synchronised_statistics_do_what_one_does(net):
    native.load()
    variables, images = variables_of(net), np.random.default_rng(2).uniform(size=(8, 13, 13, 1)).astype(np.float32)
    logits, stats, gradient = trained(make(net, "native"), variables, images)

    def on_device(variables, images):
        results = trained(make(net, "native", axis_name=parallel.AXIS_NAME), variables, images)
        return *results[:2], jax.lax.psum(results[2], parallel.AXIS_NAME)

    whole, spread = PartitionSpec(), PartitionSpec(parallel.AXIS_NAME)
    mesh = parallel.make_mesh()
    specs = {"in_specs": (whole, spread), "out_specs": (spread, whole, whole), "check_vma": False}
    many = jax.jit(jax.shard_map(on_device, mesh=mesh, **specs))(variables, images)
    for ours, one in zip(jax.tree.leaves(many), jax.tree.leaves((logits, stats, gradient)), strict=True):
        np.testing.assert_allclose(ours, one, rtol=0, atol=2e-4 * float(jnp.abs(one).max()) + 1e-5)


def test_a_fused_networks_variables_are_those_of_a_written_one():
    native.load()
    first, second = (
        make("bottleneck", conv).init(jax.random.key(0), IMAGES[:1], train=train)
        for conv, train in (("native", True), ("lax", False))
    )
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_no_pass_over_activations_is_left_to_sums():
    """Each norm's moments come from the convolution before it, the gradient's means from the one after it."""
    native.load()
    model, variables = make("bottleneck", "native", dtype=jnp.bfloat16), variables_of("bottleneck")
    program = jax.jit(functools.partial(trained, model)).lower(variables).as_text()
    assert "fer_jax_moments" not in program
    # These are left for the projections, which have no ReLU, and for the last norm, which no convolution follows.
    assert program.count("@fer_jax_gradient_sums_bfloat16(") == 2 + 1
    assert program.count("@fer_jax_conv_input_gradient_bfloat16(") >= 3 * 3


def test_a_value_that_is_not_a_number_stays_one():
    native.load()
    images = IMAGES.copy()
    images[0, 3, 3] = np.nan
    logits, _, gradient = trained(make("basic", "native"), variables_of("basic"), images)
    assert np.isnan(logits).all()
    assert np.isnan(gradient["head"]["kernel"]).all()
