import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fer_jax.models.resnet import ResNet
from fer_jax.recipe import optimizer

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "resnet50.py"
SHAPES = {
    "stem_conv": {"kernel": (3, 3, 1, 4)},
    "stem_norm": {"scale": (4,), "bias": (4,)},
    "head": {"kernel": (4, 7), "bias": (7,)},
}


def config(**changes):
    return runpy.run_path(str(CONFIG))["get_config"]().optimizer.to_dict() | changes


def random_tree(seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def run(transformation, params, gradients):
    """Returns the updates of each step in turn."""
    state, all_updates = transformation.init(params), []
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        all_updates.append(updates)
    return all_updates


def make(steps_per_epoch=10, num_epochs=10, **changes):
    schedule = optimizer.make_schedule(config(**changes), steps_per_epoch=steps_per_epoch, num_epochs=num_epochs)
    return optimizer.make_optimizer(config(**changes), schedule)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {0: 0.001, 1: 0.001, 50: 0.001, 10_000: 0.001}),
        ({"schedule": "cosine"}, {0: 0.001, 25: 0.001 * (1 + 0.5**0.5) / 2, 50: 0.0005, 100: 0.0}),
        ({"warmup_epochs": 2.0}, {0: 0.0, 1: 0.00005, 10: 0.0005, 19: 0.00095, 20: 0.001, 99: 0.001}),
        ({"warmup_epochs": 0.5}, {0: 0.0, 1: 0.0002, 4: 0.0008, 5: 0.001, 6: 0.001}),
        # The cosine runs from the end of the warm-up to the end of training.
        ({"warmup_epochs": 2.0, "schedule": "cosine"}, {0: 0.0, 10: 0.0005, 20: 0.001, 60: 0.0005, 100: 0.0}),
        # Together with the warm-up this is the triangle of the one-cycle policy.
        ({"warmup_epochs": 2.0, "schedule": "linear"}, {0: 0.0, 10: 0.0005, 20: 0.001, 60: 0.0005, 100: 0.0}),
        ({"schedule": "cosine", "learning_rate": 0.5}, {0: 0.5, 50: 0.25, 100: 0.0, 150: 0.0}),
    ],
    ids=str,
)
def test_learning_rate_at_given_steps(changes, expected):
    schedule = optimizer.make_schedule(config(**changes), steps_per_epoch=10, num_epochs=10)
    given = {step: float(schedule(step)) for step in expected}
    assert given == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_cosine_falls_all_the_way():
    schedule = optimizer.make_schedule(config(schedule="cosine"), steps_per_epoch=10, num_epochs=10)
    rates = np.array([schedule(step) for step in range(101)])
    assert (np.diff(rates) < 0).all()
    assert 0 < rates[99] < 0.001 * 0.001


def test_the_baseline_updates_exactly_as_optax_adam():
    params, gradients = random_tree(0), [random_tree(seed) for seed in (1, 2, 3)]
    ours, theirs = run(make(), params, gradients), run(optax.adam(0.001), params, gradients)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert all(np.abs(leaf).min() > 0 for leaf in jax.tree.leaves(ours))


def test_a_step_uses_its_own_learning_rate():
    # The first step of a warm-up has rate 0; under a constant gradient Adam's update is the rate times its sign.
    params, gradient = random_tree(0), random_tree(1)
    for step, updates in enumerate(run(make(warmup_epochs=0.3), params, 5 * [gradient])):
        rate = 0.001 * min(1, step / 3)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-9),
            updates,
            jax.tree.map(lambda g, rate=rate: -rate * np.sign(g), gradient),
        )


def test_weight_decay_shrinks_kernels_and_leaves_the_rest():
    params = random_tree(0)
    (updates,) = run(make(weight_decay=0.1, learning_rate=0.01), params, [jax.tree.map(jnp.zeros_like, params)])
    for layer, name in (("stem_conv", "kernel"), ("head", "kernel")):
        np.testing.assert_allclose(updates[layer][name], -0.01 * 0.1 * params[layer][name], rtol=1e-6)
    for layer, name in (("stem_norm", "scale"), ("stem_norm", "bias"), ("head", "bias")):
        np.testing.assert_array_equal(updates[layer][name], 0.0)


def test_weight_decay_is_decoupled_from_adam():
    params, gradients = random_tree(0), [random_tree(seed) for seed in (1, 2, 3)]
    ours = run(make(weight_decay=0.1), params, gradients)
    theirs = run(optax.adamw(0.001, weight_decay=0.1, mask=optimizer.is_kernel), params, gradients)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, theirs)


def test_kernels_of_the_network_are_its_matrices():
    model = ResNet((1, 1), bottleneck=True, width=2)
    variables = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    )
    marked = optimizer.is_kernel(variables["params"])
    assert marked == jax.tree.map(lambda leaf: leaf.ndim > 1, variables["params"])
    assert sum(jax.tree.leaves(marked)) == 10  # stem, 3 a block, 2 projections, head


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_clipping_bounds_the_global_norm_and_leaves_smaller_gradients(scale):
    params, gradients = random_tree(0), [jax.tree.map(lambda g: scale * g, random_tree(seed)) for seed in (1, 2, 3)]

    def clipped(gradient):
        norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(gradient)))
        return jax.tree.map(lambda g: g * min(1.0, 2.0 / norm), gradient)

    ours = run(make(clip_norm=2.0), params, gradients)
    theirs = run(optax.adam(0.001), params, [clipped(gradient) for gradient in gradients])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-9), ours, theirs)


def test_clipping_tells_large_gradients_from_small():
    """Adam forgets a constant scale, so only gradients that change size show whether they were clipped."""
    params, gradient = random_tree(0), random_tree(1)
    gradients = [gradient, jax.tree.map(lambda g: 100 * g, gradient)]
    _, free = run(make(), params, gradients)
    _, clipped = run(make(clip_norm=1.0), params, gradients)
    for a, b in zip(jax.tree.leaves(free), jax.tree.leaves(clipped), strict=True):
        np.testing.assert_allclose(np.abs(b), 0.001, rtol=1e-3)  # both gradients are clipped to the same one
        assert (np.abs(a) < 0.0008).all()


def test_sgd_is_nesterov_s_with_l2_of_kernels_in_the_gradient():
    decay, rate = 0.01, 0.1
    params, gradients = random_tree(0), [random_tree(seed) for seed in range(1, 5)]
    updates = run(make(name="sgd", learning_rate=rate, weight_decay=decay), params, gradients)
    for path, start in jax.tree_util.tree_leaves_with_path(params):
        # Sutskever et al. 2013 in the form that frameworks use: v = 0.9 v + g; w = w - rate (g + 0.9 v).
        weight, velocity = np.asarray(start, np.float64), 0.0
        for gradient, update in zip(gradients, updates, strict=True):
            leaf = {"gradient": gradient, "update": update}
            for name, tree in leaf.items():
                for key in path:
                    tree = tree[key.key]
                leaf[name] = np.asarray(tree, np.float64)
            total = leaf["gradient"] + (decay * weight if path[-1].key == "kernel" else 0)
            velocity = 0.9 * velocity + total
            expected = -rate * (total + 0.9 * velocity)
            np.testing.assert_allclose(leaf["update"], expected, rtol=1e-4, atol=1e-6, err_msg=str(path))
            weight = weight + expected
