"""fer_jax itself; with conv 'lax' it is plain Flax with the stock convolutions.

The training step does more than its peers': it augments the images and counts what was right.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from configs import resnet50
from fer_jax import augment, optimizer, parallel, state, steps
from fer_jax.data.dataset import CLASS_NAMES, IMAGE_SHAPE, Split
from fer_jax.models import resnet
from scripts.peers import make_batch

PACKAGES = ("jax", "jaxlib", "flax", "optax", "tensorflow")
CONFIG = resnet50.get_config()


def make(spec: dict) -> tuple[Callable[[], None], int]:
    """Gives a function that does the work once and waits for it, and the network's number of parameters.

    spec: {task: 'step', 'inference', 'augment', 'pipeline' or 'calls', batch, model: overrides of config.model, for
    'pipeline' indices_only, for 'calls' loader, steps and steps_per_call}.
    """
    tasks = {"step": _step, "inference": _inference, "augment": _augment, "pipeline": _pipeline, "calls": _calls}
    return tasks[spec["task"]](spec)


def make_network(spec: dict) -> resnet.ResNet:
    return resnet.make(
        CONFIG.model.to_dict() | spec["model"],
        num_classes=len(CLASS_NAMES),
        axis_name=parallel.AXIS,
        backend=jax.default_backend(),
    )


def _step(spec: dict):
    return make_step(spec, jax.sharding.Mesh(np.array(jax.devices()[:1]), (parallel.AXIS,)))


def make_training(spec: dict, mesh: jax.sharding.Mesh):
    """Gives the mapped training call and the first state."""
    schedule = optimizer.make_schedule(CONFIG.optimizer, steps_per_epoch=448, num_epochs=CONFIG.num_epochs)
    model, adam = make_network(spec), optimizer.make(CONFIG.optimizer, schedule)
    train_step = steps.make_train_step(
        model,
        adam,
        schedule=schedule,
        ranges=augment.Ranges(**CONFIG.augment),
        label_smoothing=CONFIG.optimizer.label_smoothing,
        seed=CONFIG.seed,
        axis_name=parallel.AXIS,
    )
    train_state = parallel.replicate(state.create(model, adam, seed=0, image_shape=IMAGE_SHAPE), mesh)
    return parallel.map_step(steps.repeat(train_step), mesh, "shard_map", batch_axis=1, donate=True), train_state


def make_step(spec: dict, mesh: jax.sharding.Mesh):
    """As `make`, over all devices of a mesh; spec["batch"] is this process's part of the batch."""
    train_call, train_state = make_training(spec, mesh)
    images, labels = make_batch(spec["batch"])
    batch = {"image": images, "label": labels, "index": np.arange(len(labels)), "mask": np.ones(len(labels), bool)}
    batches = {key: value[None] for key, value in batch.items()}
    batches = parallel.place(batches, mesh, "shard_map", batch_axis=1)

    def run() -> None:
        nonlocal train_state
        train_state, sums = train_call(train_state, {}, batches)
        jax.block_until_ready(sums)

    return run, state.num_parameters(train_state.params)


def _inference(spec: dict):
    from fer_jax import evaluate

    model = make_network(spec)
    images, _ = make_batch(spec["batch"])
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, *IMAGE_SHAPE)), train=False))()
    variables = jax.jit(evaluate.preparer(model))(variables)
    predict = evaluate.predictor(model)
    logits = jax.jit(lambda variables, images: predict(variables, steps.scale_pixels(images)))
    return lambda: np.asarray(logits(variables, images)), state.num_parameters(variables["params"])


def _augment(spec: dict):
    ranges, keys = augment.Ranges(**CONFIG.augment), jax.random.split(jax.random.key(0), spec["batch"])
    images = jnp.ones((spec["batch"], *IMAGE_SHAPE))
    alone = jax.jit(lambda keys, images: jax.vmap(augment.augment, (0, 0, None))(keys, images, ranges))
    return lambda: jax.block_until_ready(alone(keys, images)), 0


def _calls(spec: dict):
    """Takes spec["steps"] steps as the loop does: batches of the pipeline, put on the device, in calls of some."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (parallel.AXIS,))
    train_call, train_state = make_training(spec, mesh)
    split, on_device = _random_split(), spec["loader"] == "device"
    batches = _batches(split, spec, indices_only=on_device, steps_per_call=spec["steps_per_call"])
    data = parallel.replicate(split.arrays(), mesh) if on_device else {}

    def run() -> None:
        nonlocal train_state
        for _ in range(spec["steps"] // spec["steps_per_call"]):
            placed = parallel.place(next(batches), mesh, "shard_map", batch_axis=1)
            train_state, sums = train_call(train_state, data, placed)
        jax.block_until_ready(sums)

    return run, state.num_parameters(train_state.params)


def _pipeline(spec: dict):
    batches = _batches(_random_split(), spec, indices_only=spec["indices_only"])
    return lambda: next(batches), 0


def _random_split() -> Split:
    images, labels = make_batch(28_709)
    return Split(images, labels, np.arange(len(labels)))


def _batches(split: Split, spec: dict, *, indices_only: bool, steps_per_call: int = 1):
    from fer_jax.data import pipeline

    return pipeline.train_batches(
        split,
        seed=0,
        batch_size=spec["batch"],
        first_step=0,
        last_step=2**31,
        indices_only=indices_only,
        steps_per_call=steps_per_call,
    )
