"""A first state that is made operation by operation equals that of the compiled function to the last bit."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.models import resnet
from fer_jax.recipe import by_operation, optimizer, state

MODEL = {
    "depth": 10,
    "stages": 2,
    "width": 6,
    "stem_kernel": 3,
    "stem_stride": 2,
    "stem_pool": False,
    "zero_init": False,
    "dtype": "float32",
    "sync_batch_norm": True,
    "remat": False,
    "conv": "lax",
    "batch_norm_momentum": 0.9,
    "squeeze_excitation": False,
    "stochastic_depth": 0.0,
    "dropout": 0.0,
}
OPTIONS = {"clip_norm": None, "weight_decay": 0.0}


def create(*, name: str = "adam", initial=None, has_ema: bool = False, **changes):
    model = resnet.make(MODEL | changes, num_classes=7, axis_name="data")
    transformation = optimizer.make_optimizer({"name": name, **OPTIONS}, lambda step: 0.1)
    return functools.partial(
        state.create, model, transformation, seed=3, image_shape=(48, 48, 1), initial=initial, has_ema=has_ema
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"remat": True},
        {"squeeze_excitation": True, "zero_init": True, "has_ema": True},
        {"depth": 50, "stages": 2, "name": "sgd"},
    ],
)
def test_the_first_state_is_that_of_the_compiled_function(options):
    # Compiled with optimisations, as in a run: XLA then multiplies constants first.
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    try:
        made = by_operation.trace(create(**options))()
        expected = jax.jit(create(**options))()
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
        jax.clear_caches()
    assert jax.tree.structure(made) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_arrays_that_are_returned_twice_are_two():
    made = by_operation.trace(create(has_ema=True))()
    pairs = zip(jax.tree.leaves(made.params), jax.tree.leaves(made.ema["params"]), strict=True)
    assert not any(np.shares_memory(*pair) for pair in pairs)


def test_given_layers_are_kept_and_not_drawn():
    head = {"kernel": np.full((48, 7), 2.0, np.float32), "bias": np.arange(7, dtype=np.float32)}
    made = by_operation.trace(create(initial={"params": {"head": head}}))()
    np.testing.assert_array_equal(made.params["head"]["kernel"], head["kernel"])
    np.testing.assert_array_equal(made.params["head"]["bias"], head["bias"])


def test_what_the_results_do_not_need_is_left_out():
    def fail(x):
        raise AssertionError("it was called")

    def function():
        x = jnp.arange(6.0)
        jax.pure_callback(fail, jax.ShapeDtypeStruct((6,), jnp.float32), x)
        return {"sum": x.sum(), "cut": x.reshape(2, 3)[:, 1:], "ones": jnp.ones((2, 2)), "literal": 3}

    made = by_operation.trace(function)()
    np.testing.assert_array_equal(made["sum"], 15.0)
    np.testing.assert_array_equal(made["cut"], [[1, 2], [4, 5]])
    np.testing.assert_array_equal(made["ones"], np.ones((2, 2)))
    assert made["literal"] == 3


def test_kernels_are_normal_with_the_variance_of_their_outputs():
    shape = (3, 3, 20, 64)
    kernel = by_operation.trace(lambda: resnet.he_normal_fan_out(jax.random.key(0), shape))()
    assert kernel.shape == shape
    assert kernel.std() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert abs(kernel.mean()) < 0.001
    reference = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")(jax.random.key(0), shape)
    np.testing.assert_allclose(kernel, reference, rtol=1e-6)
