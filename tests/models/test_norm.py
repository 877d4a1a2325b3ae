"""Batch normalisation with its own gradient, compared with Flax's, which is differentiated automatically."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fer_jax import parallel
from fer_jax.models import norm
from tests.support import native as native_code

SHAPE = (8, 3, 2, 5)
SETTINGS = {"momentum": 0.9, "epsilon": 1e-5, "dtype": jnp.float32}
CASES = pytest.mark.parametrize(
    ("relu", "has_shortcut"), [(False, False), (True, False), (True, True)], ids=["plain", "relu", "shortcut and relu"]
)


@pytest.fixture(params=[False, True], ids=["xla", "native"])
def native(request):
    """Returns whether the native code sums over the pixels."""
    if request.param:
        native_code.load()
    return request.param


def make_case(has_shortcut: bool):
    rng = np.random.default_rng(0)
    x, shortcut, dy = (rng.normal(1, 2, SHAPE).astype(np.float32) for _ in range(3))
    params = {"scale": rng.uniform(-1, 2, SHAPE[-1:]), "bias": rng.normal(size=SHAPE[-1:])}
    stats = {"mean": rng.normal(size=SHAPE[-1:]), "var": rng.uniform(1, 2, SHAPE[-1:])}
    variables = jax.tree.map(jnp.float32, {"params": params, "batch_stats": stats})
    return variables, x, shortcut if has_shortcut else None, dy


def ours(params, stats, x, shortcut, *, relu: bool, train: bool = True, axis_name: str | None = None, native=False):
    module = norm.BatchNorm(use_running_average=not train, axis_name=axis_name, native=native, **SETTINGS)
    variables = {"params": params, "batch_stats": stats}
    return module.apply(variables, x, relu=relu, shortcut=shortcut, mutable=["batch_stats"])


def flax(params, stats, x, shortcut, *, relu: bool, train: bool = True):
    module = nn.BatchNorm(use_running_average=not train, **SETTINGS)
    y, mutated = module.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
    y = y if shortcut is None else y + shortcut
    return nn.relu(y) if relu else y, mutated


def with_gradients(function, variables, x, shortcut, dy):
    y, gradient, mutated = jax.vjp(
        lambda params, x, shortcut: function(params, variables["batch_stats"], x, shortcut),
        variables["params"],
        x,
        shortcut,
        has_aux=True,
    )
    return y, mutated, *gradient(dy)


def assert_equal(result, expected):
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@CASES
def test_values_statistics_and_gradients_are_those_of_flax(relu, has_shortcut, native):
    case = make_case(has_shortcut)
    expected = with_gradients(functools.partial(flax, relu=relu), *case)
    assert_equal(with_gradients(functools.partial(ours, relu=relu, native=native), *case), expected)


@CASES
def test_running_statistics_serve_evaluation(relu, has_shortcut):
    variables, x, shortcut, _ = make_case(has_shortcut)
    arguments = variables["params"], variables["batch_stats"], x, shortcut
    assert_equal(ours(*arguments, relu=relu, train=False), flax(*arguments, relu=relu, train=False))


@CASES
def test_eight_devices_with_synchronised_statistics_do_what_one_does(relu, has_shortcut, native):
    variables, x, shortcut, dy = make_case(has_shortcut)
    expected = with_gradients(functools.partial(flax, relu=relu), variables, x, shortcut, dy)

    def on_device(variables, x, shortcut, dy):
        function = functools.partial(ours, relu=relu, axis_name=parallel.AXIS_NAME, native=native)
        y, mutated, dparams, dx, dshortcut = with_gradients(function, variables, x, shortcut, dy)
        return y, mutated, jax.lax.psum(dparams, parallel.AXIS_NAME), dx, dshortcut

    whole, spread = PartitionSpec(), PartitionSpec(parallel.AXIS_NAME)
    mapped = jax.shard_map(
        on_device,
        mesh=parallel.make_mesh(),
        in_specs=(whole, spread, spread, spread),
        out_specs=(spread, whole, whole, spread, spread),
        check_vma=False,
    )
    assert_equal(jax.jit(mapped)(variables, x, shortcut, dy), expected)


def test_what_is_kept_for_the_gradient_is_the_input_and_the_output():
    variables, x, _, _ = make_case(has_shortcut=False)

    def loss(x):
        module = norm.BatchNorm(use_running_average=False, **SETTINGS | {"dtype": jnp.bfloat16})
        return module.apply(variables, x, relu=True, mutable=["batch_stats"])[0]

    y, gradient = jax.vjp(loss, x.astype(jnp.bfloat16))
    kept = [leaf for leaf in jax.tree.leaves(gradient) if leaf.shape == SHAPE]
    assert [leaf.dtype for leaf in kept] == 2 * [jnp.dtype("bfloat16")]
    assert any((leaf == x.astype(jnp.bfloat16)).all() for leaf in kept)
    assert any((leaf == y).all() for leaf in kept)
