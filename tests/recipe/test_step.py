"""Training steps of a tiny network: their results, and that these don't depend on the number of devices."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from fer_jax import parallel
from fer_jax.inference.preprocessing import Preprocessing
from fer_jax.models import conv
from fer_jax.models.resnet import ResNet
from fer_jax.recipe import optimizer, state
from fer_jax.recipe.images import AugmentConfig
from fer_jax.recipe.mixing import MixConfig
from fer_jax.recipe.step import make_train_step, repeat
from tests.support import native

NO_AUGMENTATION = AugmentConfig()
AUGMENTATION = AugmentConfig(flip=0.5, rotation=10.0, zoom=0.1, shift=0.05)
IMAGE_SHAPE = (16, 16, 1)
BATCH_SIZE = 16


FULL_AUGMENTATION = dataclasses.replace(AUGMENTATION, crop=12, erasing=0.5, alternating_flip=True)
FULL_MODEL = {"squeeze_excitation": True, "stochastic_depth": 0.5, "dropout": 0.5, "batch_norm_momentum": 0.6}
FULL_STEP = {
    "mix_config": MixConfig(mixup=0.4, cutmix=1.0),
    "preprocess": Preprocessing(IMAGE_SHAPE, standardize=True),
    "class_weights": np.linspace(0.4, 1.6, 7, dtype=np.float32),
    "ema_decay": 0.9,
    # The second of three steps is in another epoch.
    "steps_per_epoch": 1,
    "num_epochs": 5,
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """The settings of a training step; steps with equal settings are compiled once."""

    mapper: str = "shard_map"
    num_devices: int = 8
    sync: bool = True
    label_smoothing: float = 0.0
    augment_config: AugmentConfig = AUGMENTATION
    seed: int = 3
    conv_fn: object = jax.lax.conv_general_dilated  # compiles faster than ours
    grad_accum_steps: int = 1
    reduce_dtype: str = "float32"
    remat: bool = False
    skip_nonfinite: bool = False
    # Switches on every option of a recipe that the number of devices might affect.
    is_full: bool = False

    @property
    def mesh(self) -> Mesh:
        return Mesh(np.array(jax.devices()[: self.num_devices]), (parallel.AXIS_NAME,), axis_types=(AxisType.Auto,))

    @property
    def model(self) -> nn.Module:
        return ResNet(
            stage_sizes=(1, 1),
            bottleneck=False,
            width=4,
            stem_kernel=3,
            stem_stride=1,
            stem_pool=False,
            axis_name=parallel.AXIS_NAME if self.sync else None,
            conv_fn=self.conv_fn,
            remat=self.remat,
            **FULL_MODEL if self.is_full else {},
        )


def schedule(step):
    return 0.004 / (1 + step)


OPTIMIZER = optimizer.make_optimizer({"name": "adam", "clip_norm": None, "weight_decay": 0.0}, schedule)


@functools.cache
def train_step(setup: Setup):
    step = make_train_step(
        setup.model,
        OPTIMIZER,
        schedule=schedule,
        augment_config=setup.augment_config,
        label_smoothing=setup.label_smoothing,
        seed=setup.seed,
        axis_name=parallel.AXIS_NAME,
        grad_accum_steps=setup.grad_accum_steps,
        reduce_dtype=setup.reduce_dtype,
        skip_nonfinite=setup.skip_nonfinite,
        **FULL_STEP if setup.is_full else {},
    )
    return parallel.map_step(repeat(step), setup.mesh, setup.mapper, batch_axis=1, donate=True)


@functools.cache
def first_state_on_host(*, is_full: bool = False):
    model = Setup(is_full=is_full).model
    create = functools.partial(state.create, model, OPTIMIZER, seed=0, image_shape=IMAGE_SHAPE, has_ema=is_full)
    return jax.tree.map(np.array, jax.jit(create)())


def first_state(setup: Setup):
    return parallel.replicate(first_state_on_host(is_full=setup.is_full), setup.mesh)


def make_batch(number: int = 0) -> dict:
    """Returns a batch of images whose labels can be told from where they are bright."""
    generator = np.random.default_rng(number)
    labels = generator.integers(0, 7, BATCH_SIZE).astype(np.int32)
    images = generator.integers(0, 100, (BATCH_SIZE, *IMAGE_SHAPE))
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 150
    return {"image": images.astype(np.uint8), "label": labels, "index": np.arange(BATCH_SIZE)}


def make_votes(number: int = 0) -> np.ndarray:
    """Returns targets, float32 [batch, classes], that are not one-hot labels."""
    return np.random.default_rng(number).dirichlet(np.ones(7), BATCH_SIZE).astype(np.float32)


def take_steps(setup: Setup, current, batches: list[dict], data: dict | None = None):
    """Takes a step for each of the batches in one call; sums are stacked."""
    stacked = {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}
    placed = parallel.shard_batch(stacked, setup.mesh, setup.mapper, batch_axis=1)
    new_state, sums = train_step(setup)(current, parallel.replicate(data or {}, setup.mesh), placed)
    return new_state, jax.device_get(sums)


def take_step(setup: Setup, current, batch: dict):
    new_state, sums = take_steps(setup, current, [batch])
    return new_state, {key: value[0] for key, value in sums.items()}


@functools.cache
def three_steps(setup: Setup):
    current, all_sums = first_state(setup), []
    for number in range(3):
        # With every option on, the targets are mixtures of labels and votes.
        votes = {"target": make_votes(number)} if setup.is_full else {}
        current, sums = take_step(setup, current, make_batch(number) | votes)
        all_sums.append(sums)
    return current, all_sums


def assert_close(ours, theirs, *, rtol, atol=0.0):
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


def assert_identical(ours, theirs):
    assert_close(ours, theirs, rtol=0)


def reference(batch: dict, *, label_smoothing: float = 0.0) -> dict:
    """Returns `loss` and `correct` of the first step on one device, in NumPy from the network's logits."""
    setup = Setup(sync=False)
    variables = {"params": first_state_on_host().params, "batch_stats": first_state_on_host().batch_stats}
    images = jnp.asarray(batch["image"] / np.float32(255))
    logits, _ = setup.model.apply(variables, images, train=True, mutable=["batch_stats"])
    logits = np.asarray(logits, np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = np.full(logits.shape, label_smoothing / 7)
    targets[np.arange(BATCH_SIZE), batch["label"]] += 1 - label_smoothing
    return {
        "loss": -(targets * log_probabilities).sum(),
        "correct": (logits.argmax(axis=1) == batch["label"]).sum(),
    }


@pytest.fixture(params=["lax", "native"])
def conv_fn(request):
    """Returns the stock or the native convolution; skips the test if the native one can't be had."""
    if request.param == "native":
        native.load()
    return conv.resolve(request.param)


def test_shard_map_and_pmap_take_the_same_steps(conv_fn):
    one, other = (three_steps(Setup(mapper=mapper, conv_fn=conv_fn)) for mapper in ("shard_map", "pmap"))
    assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("num_devices", "conv_fn"), [(2, "lax"), (8, "lax"), (8, "native")], indirect=["conv_fn"])
def test_with_synchronised_statistics_many_devices_do_what_one_does(num_devices, conv_fn):
    many, sums_of_many = three_steps(Setup(num_devices=num_devices, conv_fn=conv_fn))
    one, sums_of_one = three_steps(Setup(num_devices=1, conv_fn=conv_fn))
    assert_close(sums_of_many, sums_of_one, rtol=1e-5)
    assert_close(many.batch_stats, one.batch_stats, rtol=1e-4, atol=1e-6)
    # Adam's first steps divide a gradient by its own size, even where both are round-off: a step is about 0.004.
    assert_close(many.params, one.params, rtol=1e-4, atol=4e-5)


@pytest.mark.parametrize("mapper", ["shard_map", "pmap"])
def test_many_devices_do_what_one_does_with_everything_that_a_recipe_can_switch_on(mapper):
    many, sums_of_many = three_steps(
        Setup(num_devices=8, mapper=mapper, augment_config=FULL_AUGMENTATION, is_full=True)
    )
    one, sums_of_one = three_steps(Setup(num_devices=1, augment_config=FULL_AUGMENTATION, is_full=True))
    assert_close(sums_of_many, sums_of_one, rtol=1e-4)
    assert_close(many.ema["batch_stats"], one.ema["batch_stats"], rtol=1e-3, atol=1e-5)
    # Adam divides a gradient that is nearly zero, and its round-off, by its size: so states are not compared value by
    # value but by the size of the change. Another partner, mask or box would make a different gradient altogether.
    first = first_state_on_host(is_full=True).params
    for ours, theirs in ((many.params, one.params), (many.ema["params"], one.ema["params"])):
        changed, different = (
            np.sqrt(sum(np.sum((np.asarray(a) - b) ** 2) for a, b in zip(*map(jax.tree.leaves, pair), strict=True)))
            for pair in ((theirs, first), (ours, theirs))
        )
        assert different < 0.01 * changed
    # The options had an effect: the average differs from the weights, and the loss from that of a plain step.
    assert not np.allclose(one.ema["params"]["head"]["kernel"], one.params["head"]["kernel"], atol=1e-5)
    assert abs(sums_of_one[0]["loss"] / three_steps(Setup(num_devices=1))[1][0]["loss"] - 1) > 1e-3


def test_the_average_is_that_of_the_weights_and_the_statistics():
    setup = Setup(num_devices=1, augment_config=FULL_AUGMENTATION, is_full=True)
    before = first_state_on_host(is_full=True)
    after, _ = take_step(setup, first_state(setup), make_batch())
    # The first step keeps a tenth of the average.
    expected = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, before.variables, after.variables)
    assert_close(after.ema, expected, rtol=1e-4, atol=1e-6)


def test_targets_of_the_batch_take_the_place_of_the_labels():
    setup = Setup(num_devices=1, label_smoothing=0.1, augment_config=NO_AUGMENTATION)
    _, with_labels = take_step(setup, first_state(setup), make_batch())
    _, with_the_same = take_step(
        setup, first_state(setup), make_batch() | {"target": np.eye(7, dtype=np.float32)[make_batch()["label"]]}
    )
    _, with_votes = take_step(setup, first_state(setup), make_batch() | {"target": make_votes()})
    assert_close(with_the_same, with_labels, rtol=1e-6)
    # The loss is linear in the targets: a mean of the losses of the labels, weighted by the smoothed votes.
    losses = [
        take_step(setup, first_state(setup), make_batch() | {"label": np.full(BATCH_SIZE, label, np.int32)})[1]["loss"]
        for label in range(7)
    ]
    assert abs(with_votes["loss"] - with_labels["loss"]) > 1e-3
    assert with_votes["correct"] == with_labels["correct"]
    assert min(losses) < with_votes["loss"] < max(losses)


def test_without_synchronised_statistics_devices_agree_on_another_result():
    eight, sums_of_eight = three_steps(Setup(sync=False))
    _, sums_of_one = three_steps(Setup(num_devices=1))
    assert sums_of_eight[0]["count"] == sums_of_one[0]["count"]
    assert abs(sums_of_eight[0]["loss"] / sums_of_one[0]["loss"] - 1) > 1e-3
    for path, leaf in jax.tree_util.tree_leaves_with_path(eight):
        assert len(leaf.addressable_shards) == 8
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, leaf, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(("num_devices", "label_smoothing"), [(1, 0.0), (8, 0.1)])
def test_sums_are_those_of_the_logits(num_devices, label_smoothing):
    setup = Setup(num_devices=num_devices, label_smoothing=label_smoothing, augment_config=NO_AUGMENTATION)
    _, sums = take_step(setup, first_state(setup), make_batch())
    expected = reference(make_batch(), label_smoothing=label_smoothing)
    assert sums["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert sums["correct"] == expected["correct"]
    assert sums["count"] == BATCH_SIZE
    assert {key: (value.dtype, value.shape) for key, value in sums.items()} == {
        "loss": (np.float32, ()),
        "correct": (np.int32, ()),
        "count": (np.int32, ()),
        "learning_rate": (np.float32, ()),
    }


def test_the_gradient_is_of_the_mean_over_the_global_batch():
    setup = Setup(num_devices=8, augment_config=NO_AUGMENTATION)
    batch = make_batch()
    sgd = optax.sgd(1.0)
    step = make_train_step(
        setup.model,
        sgd,
        schedule=schedule,
        augment_config=NO_AUGMENTATION,
        label_smoothing=0.0,
        seed=0,
        axis_name=parallel.AXIS_NAME,
    )
    before = first_state_on_host()
    start = parallel.replicate(before.replace(opt_state=sgd.init(before.params)), setup.mesh)
    placed = parallel.shard_batch(batch, setup.mesh, "shard_map")
    after, _ = parallel.map_step(step, setup.mesh, "shard_map")(start, {}, placed)

    # By gradient descent at a learning rate of 1, the head's bias moves by the mean of (target - probability).
    variables = {"params": before.params, "batch_stats": before.batch_stats}
    images = jnp.asarray(batch["image"] / np.float32(255))
    logits, mutated = Setup(sync=False).model.apply(variables, images, train=True, mutable=["batch_stats"])
    expected = (np.eye(7)[batch["label"]] - jax.nn.softmax(logits)).mean(axis=0)
    moved = after.params["head"]["bias"] - before.params["head"]["bias"]
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)
    # The statistics are those of the whole batch.
    assert_close(after.batch_stats, mutated["batch_stats"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("mapper", "num_devices"), [("shard_map", 8), ("pmap", 1)])
def test_one_call_of_three_steps_is_three_calls(mapper, num_devices):
    # XLA:CPU's own convolution sums in another order within a loop.
    setup = Setup(mapper=mapper, num_devices=num_devices, conv_fn=conv.conv_general_dilated)
    together, sums = take_steps(setup, first_state(setup), [make_batch(number) for number in range(3)])
    one_by_one, all_sums = three_steps(setup)
    assert_close(together, one_by_one, rtol=1e-6, atol=1e-7)
    assert_close(sums, {key: np.stack([sums[key] for sums in all_sums]) for key in sums}, rtol=1e-6)


@pytest.mark.parametrize("mapper", ["shard_map", "pmap"])
def test_a_batch_of_indices_into_data_on_the_devices_is_the_batch_itself(mapper):
    setup = Setup(mapper=mapper)
    batch = make_batch()
    order = np.random.default_rng(1).permutation(BATCH_SIZE)
    data = {"image": batch["image"][order], "label": batch["label"][order]}
    index = {"index": np.argsort(order).astype(np.int32)}
    one, sums = take_steps(setup, first_state(setup), [index], data)
    other, other_sums = take_steps(setup, first_state(setup), [batch])
    assert_identical((one, sums), (other, other_sums))


def test_accumulating_over_microbatches_does_what_as_many_devices_do():
    """Each microbatch has its own batch statistics, as each device has when they are not synchronised."""
    parts, parts_sums = three_steps(Setup(num_devices=1, sync=False, grad_accum_steps=4))
    devices, devices_sums = three_steps(Setup(num_devices=4, sync=False))
    assert_close(parts_sums, devices_sums, rtol=1e-5)
    assert_close(parts.batch_stats, devices.batch_stats, rtol=1e-4, atol=1e-6)
    assert_close(parts.params, devices.params, rtol=1e-4, atol=4e-5)


def test_accumulating_over_microbatches_that_are_alike_gives_the_gradient_of_the_whole():
    """If all microbatches have the same images, their statistics and gradients are those of the whole batch."""
    part = {key: value[:4] for key, value in make_batch().items()}
    batch = {key: np.concatenate([value] * 4) for key, value in part.items()}
    results = []
    for grad_accum_steps in (1, 4):
        setup = Setup(num_devices=1, augment_config=NO_AUGMENTATION, grad_accum_steps=grad_accum_steps)
        new_state, sums = take_step(setup, first_state(setup), batch)
        # Adam's first moment after one step is a tenth of the gradient.
        results.append((new_state.opt_state[0].mu, sums))
    assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_accumulating_on_many_devices_with_synchronised_statistics_is_accumulating_on_one():
    """Eight devices have two images each; a microbatch has one image of each device, and statistics of these eight."""
    setups = {
        devices: Setup(num_devices=devices, augment_config=NO_AUGMENTATION, grad_accum_steps=2) for devices in (8, 1)
    }
    states = {devices: first_state(setup) for devices, setup in setups.items()}
    together = np.arange(BATCH_SIZE).reshape(8, 2).T.ravel()
    for number in range(3):
        batch, sums = make_batch(number), {}
        for devices, setup in setups.items():
            images = batch if devices == 8 else {key: value[together] for key, value in batch.items()}
            states[devices], sums[devices] = take_step(setup, states[devices], images)
        assert_close(sums[8], sums[1], rtol=1e-5)
    assert_close(states[8].batch_stats, states[1].batch_stats, rtol=1e-4, atol=1e-6)
    assert_close(states[8].params, states[1].params, rtol=1e-4, atol=4e-5)


def test_accumulating_needs_less_memory():
    def temporary_bytes(setup):
        batch = {key: np.concatenate(4 * [value])[None] for key, value in make_batch().items()}
        placed = parallel.shard_batch(batch, setup.mesh, setup.mapper, batch_axis=1)
        program = train_step(setup).lower(first_state(setup), {}, placed).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(Setup(num_devices=1, grad_accum_steps=4)) < temporary_bytes(Setup(num_devices=1)) / 2


def test_rematerialised_blocks_change_nothing():
    assert_close(three_steps(Setup(remat=True)), three_steps(Setup()), rtol=1e-5, atol=1e-6)


def test_rematerialised_blocks_need_less_memory():
    images = jax.ShapeDtypeStruct((16, *IMAGE_SHAPE), np.float32)

    def temporary_bytes(remat):
        model = dataclasses.replace(Setup().model, stage_sizes=(8,), axis_name=None, remat=remat)

        def loss(params, batch_stats, images):
            variables = {"params": params, "batch_stats": batch_stats}
            return model.apply(variables, images, train=True, mutable=["batch_stats"])[0].sum()

        variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
        program = jax.jit(jax.grad(loss)).lower(variables["params"], variables["batch_stats"], images).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(remat=True) < 0.7 * temporary_bytes(remat=False)


def test_gradients_that_travel_as_bfloat16_differ_by_its_rounding():
    setups = [Setup(sync=False, reduce_dtype=dtype) for dtype in ("float32", "bfloat16")]
    one, other = (take_step(setup, first_state(setup), make_batch())[0].opt_state[0].mu for setup in setups)
    differences = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)]
    assert max(differences) > 0
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
    assert max(differences) < largest / 50
    assert {leaf.dtype for leaf in jax.tree.leaves(other)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("mapper", ["shard_map", "pmap"])
def test_the_memory_of_the_state_is_given_to_the_next_one(mapper):
    setup = Setup(mapper=mapper)
    before = first_state(setup)
    take_step(setup, before, make_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))


def test_sums_hold_the_learning_rate_the_step_was_taken_with():
    current, all_sums = three_steps(Setup())
    assert int(current.step) == 3
    assert [float(sums["learning_rate"]) for sums in all_sums] == pytest.approx([0.004, 0.002, 0.004 / 3])


def test_training_on_the_same_batch_reduces_its_loss():
    setup = Setup(label_smoothing=0.1, augment_config=NO_AUGMENTATION)
    current, losses = first_state(setup), []
    for _ in range(4):
        current, sums = take_step(setup, current, make_batch())
        losses.append(float(sums["loss"]))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.98 * losses[0]


def test_the_same_seed_step_state_and_batch_give_the_same_bits():
    setup = Setup()
    again, sums_again = first_state(setup), []
    for number in range(3):
        again, sums = take_step(setup, again, make_batch(number))
        sums_again.append(sums)
    assert_identical((again, sums_again), three_steps(setup))


def test_a_step_that_is_not_finite_is_skipped_and_nothing_else_is():
    setup = Setup(skip_nonfinite=True)
    (expected, all_sums), current = three_steps(Setup()), first_state(setup)
    for number in range(3):
        current, sums = take_step(setup, current, make_batch(number))
        assert sums.pop("skipped") == 0
        assert_close(sums, all_sums[number], rtol=1e-5)
    assert_close(current, expected, rtol=1e-4, atol=1e-5)

    broken = jax.tree.map(np.array, first_state_on_host())
    broken.params["head"]["bias"][3] = np.inf
    before = jax.tree.map(np.array, broken)
    after, sums = take_step(setup, parallel.replicate(broken, setup.mesh), make_batch())
    assert sums == {"loss": 0, "correct": 0, "count": 0, "skipped": 1, "learning_rate": pytest.approx(0.004)}
    # The schedule's counter numbers the steps, so that a skipped step advances it too.
    adam, counter = before.opt_state
    counter = counter._replace(count=counter.count + 1)
    assert_identical(after, before.replace(step=before.step + 1, opt_state=(adam, counter)))


def test_a_skipped_step_leaves_the_next_one_the_rate_of_its_number():
    setup = Setup(skip_nonfinite=True)
    broken = jax.tree.map(np.array, first_state_on_host())
    broken.params["head"]["bias"][3] = np.inf
    after, sums = take_step(setup, parallel.replicate(broken, setup.mesh), make_batch())
    assert sums["skipped"] == 1
    assert int(after.step) == 1
    # The weights are repaired, and the optimizer's state is as the skipped step left it.
    before = first_state_on_host()
    mended = before.replace(step=np.int32(1), opt_state=jax.device_get(after.opt_state))
    after, sums = take_step(setup, parallel.replicate(mended, setup.mesh), make_batch())
    assert sums["learning_rate"] == pytest.approx(schedule(1))
    # Adam's first step moves each parameter by the learning rate, here half of what it was at step 0.
    moved = np.abs(after.params["head"]["bias"] - before.params["head"]["bias"])
    np.testing.assert_allclose(moved, schedule(1), rtol=1e-3)
