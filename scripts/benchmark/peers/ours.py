"""fer_jax itself; with conv 'lax' it is plain Flax with the stock convolutions.

The training step does more than its peers': it augments the images and counts correct predictions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import resnet50
from fer_jax import parallel
from fer_jax.data.dataset import CLASS_NAMES, IMAGE_SHAPE, Split
from fer_jax.inference.preprocessing import Preprocessing
from fer_jax.inference.trained_model import make_model, make_predict, make_prepare
from fer_jax.loop.program import Program, make_training
from fer_jax.models import resnet
from fer_jax.recipe import by_operation, state
from fer_jax.recipe.images import AugmentConfig, augment
from scripts.benchmark.peers import jax_peak_memory, keep_programs, make_batch

PACKAGES = ("jax", "jaxlib", "flax", "optax", "tensorflow")
peak_memory = jax_peak_memory
wait = jax.block_until_ready
CONFIG = resnet50.get_config()
NUM_IMAGES = 28_709


def make(spec: dict) -> tuple[Callable[[], Any], int]:
    """Returns a function that starts the work once and returns its result, and the network's number of parameters.

    spec: {task: 'step', 'inference', 'augment', 'pipeline' or 'calls', batch, image_size, model: overrides
    of config.model, for 'pipeline' indices_only, for 'calls' loader, steps and steps_per_call}.
    """
    keep_programs()
    tasks = {"step": _step, "inference": _inference, "augment": _augment, "pipeline": _pipeline, "calls": _calls}
    return tasks[spec["task"]](spec)


def make_network(spec: dict) -> resnet.ResNet:
    return make_model(CONFIG.model.to_dict() | spec["model"], num_classes=len(CLASS_NAMES))


def _step(spec: dict):
    return make_step(spec, _one_device())


def _one_device() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()[:1]), (parallel.AXIS_NAME,))


def make_step(spec: dict, mesh: jax.sharding.Mesh):
    """Returns the same as `make`, for a step over all devices of a mesh; spec["batch"]: this process's batch size."""
    shape = (spec["image_size"], spec["image_size"], 1)
    train_call, create = make_training(CONFIG, make_network(spec), Preprocessing(shape), mesh, steps_per_epoch=448)
    # As Program creates it: this compiles only a few operations, whereas applying the network would compile dozens.
    train_state = parallel.replicate(by_operation.trace(create)(), mesh)
    images, labels = make_batch(spec["batch"], spec["image_size"])
    batch = {"image": images, "label": labels, "index": np.arange(len(labels))}
    batches = {key: value[None] for key, value in batch.items()}
    batches = parallel.shard_batch(batches, mesh, "shard_map", batch_axis=1)

    def run():
        nonlocal train_state
        train_state, sums = train_call(train_state, {}, batches)
        return sums

    return run, state.num_parameters(train_state.params)


def _inference(spec: dict):
    model = make_network(spec)
    images, _ = make_batch(spec["batch"], spec["image_size"])
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, *images.shape[1:])), train=False))()
    prepared = jax.jit(make_prepare(model))(variables)
    predict = jax.jit(make_predict(model, Preprocessing(images.shape[1:])))
    return lambda: np.asarray(predict(prepared, images)["whole"]), state.num_parameters(variables["params"])


def _augment(spec: dict):
    config, keys = AugmentConfig(**CONFIG.augment), jax.random.split(jax.random.key(0), spec["batch"])
    images = jnp.ones((spec["batch"], spec["image_size"], spec["image_size"], 1))
    alone = jax.jit(lambda keys, images: jax.vmap(augment, (0, 0, None))(keys, images, config))
    # Each call is waited for: calls don't depend on each other, and would otherwise run concurrently.
    return lambda: jax.block_until_ready(alone(keys, images)), 0


def _calls(spec: dict):
    """Takes spec["steps"] steps as the loop does: with batches of the pipeline, put on the device, several per call."""
    steps, in_call = spec["steps"], spec["steps_per_call"]
    if steps % in_call:
        raise ValueError(f"{steps} steps are no multiple of {in_call} in a call")
    config = CONFIG.copy_and_resolve_references()
    config.update_from_flattened_dict(
        {
            "batch_size": spec["batch"],
            "dataset.loader": spec["loader"],
            "train.steps_per_call": in_call,
            "augment.crop": spec["image_size"] if spec["image_size"] < IMAGE_SHAPE[0] else None,
        }
    )
    # An epoch is a whole number of calls: its last call would otherwise have only the steps that are left.
    images_in_call = spec["batch"] * in_call
    split = _random_split(images_in_call * max(1, NUM_IMAGES // images_in_call))
    program = Program(config, make_network(spec), Preprocessing(split.images.shape[1:]), split, _one_device())
    program.compile(program.lower(0))
    train_state, batches = program.first_state(), program.batches(0, 2**31)

    def run():
        nonlocal train_state
        for _ in range(steps // in_call):
            train_state, sums = program(train_state, next(batches))
        return sums

    return run, state.num_parameters(train_state.params)


def _pipeline(spec: dict):
    from fer_jax.data import pipeline

    batches = pipeline.train_batches(
        _random_split(NUM_IMAGES),
        seed=0,
        batch_size=spec["batch"],
        first_step=0,
        last_step=2**31,
        indices_only=spec["indices_only"],
    )
    return lambda: next(batches), 0


def _random_split(num_images: int) -> Split:
    images, labels = make_batch(num_images)
    return Split(images, labels, np.arange(len(labels)))
