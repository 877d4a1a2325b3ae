"""What a run trains with: the optimizer, the compiled training steps, and the batches they take."""

import functools
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_dict

from fer_jax import parallel
from fer_jax.data.dataset import IMAGE_SHAPE, Split
from fer_jax.errors import UserError
from fer_jax.models import flops
from fer_jax.models.resnet import ResNet
from fer_jax.recipe import images as augment
from fer_jax.recipe import optimizer, state
from fer_jax.recipe import step as steps


def make_training(
    config: config_dict.ConfigDict, model: ResNet, mesh: Mesh, *, steps_per_epoch: int
) -> tuple[Callable, Callable[[], state.TrainState]]:
    """Gives the training call over the devices of `mesh` (see `steps.repeat`), and what makes the first state."""
    schedule = optimizer.make_schedule(config.optimizer, steps_per_epoch=steps_per_epoch, num_epochs=config.num_epochs)
    transformation = optimizer.make(config.optimizer, schedule)
    step = steps.make_train_step(
        model,
        transformation,
        schedule=schedule,
        ranges=augment.Ranges(**config.augment),
        label_smoothing=config.optimizer.label_smoothing,
        seed=config.seed,
        axis_name=parallel.AXIS,
        accumulate_steps=config.train.accumulate_steps,
        reduce_dtype=config.parallel.reduce_dtype,
        skip_nonfinite=config.train.skip_nonfinite is not None,
    )
    create = functools.partial(state.create, model, transformation, seed=config.seed, image_shape=IMAGE_SHAPE)
    return parallel.map_step(steps.repeat(step), mesh, config.parallel.mapper, batch_axis=1, donate=True), create


class Program:
    """The training steps of `config` over the devices of `mesh`, on the images of `split`.

    steps_per_epoch; flops: to train on an image. Raises UserError where the split has fewer images than a batch.
    """

    def __init__(self, config: config_dict.ConfigDict, model: ResNet, split: Split, mesh: Mesh):
        if config.batch_size > len(split):
            raise UserError(f"config.batch_size is {config.batch_size}, more than the {len(split)} training images")
        self._config, self._split, self._mesh = config, split, mesh
        self.steps_per_epoch = split.steps_per_epoch(config.batch_size)
        self.flops = flops.training_flops(model, IMAGE_SHAPE)
        self._mapped, self._create = make_training(config, model, mesh, steps_per_epoch=self.steps_per_epoch)
        self._data = parallel.replicate(split.arrays(), mesh) if config.dataset.loader == "device" else {}

    @functools.cached_property
    def abstract_state(self) -> state.TrainState:
        """The shapes, dtypes and shardings of the state."""
        sharding = NamedSharding(self._mesh, PartitionSpec())
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(self._create)
        )

    def first_state(self) -> state.TrainState:
        """The state before the first step, on every device."""
        # It runs once: XLA:CPU compiles it in a third of the time at this level, to the same bits.
        create = jax.jit(self._create, compiler_options={"xla_backend_optimization_level": 1})
        return parallel.replicate(create(), self._mesh)

    def compile(self) -> float:
        """Compiles the call for every number of steps it may take, so that no step's time contains it.

        Gives the seconds it took.
        """
        started = time.perf_counter()
        steps_per_call = min(self._config.train.steps_per_call, self.steps_per_epoch)
        batch_size = self._config.batch_size // jax.process_count()
        self._calls = {}
        for num_steps in {steps_per_call, self.steps_per_epoch % steps_per_call} - {0}:
            index = np.zeros((num_steps, batch_size), np.int32)
            arrays = {} if self._data else self._split.arrays()
            example = {key: array[index] for key, array in arrays.items()}
            batches = self._place(example | {"index": index, "mask": index == 0})
            self._calls[num_steps] = self._mapped.lower(self.abstract_state, self._data, batches).compile()
        return time.perf_counter() - started

    def batches(self, first_step: int, last_step: int) -> Iterator[dict]:
        """The batches of each call from one step up to another, on the host (see `pipeline.train_batches`)."""
        from fer_jax.data import pipeline

        return pipeline.train_batches(
            self._split,
            seed=self._config.seed,
            batch_size=self._config.batch_size,
            first_step=first_step,
            last_step=last_step,
            steps_per_call=self._config.train.steps_per_call,
            indices_only=bool(self._data),
            host=jax.process_index(),
            num_hosts=jax.process_count(),
        )

    def __call__(self, train_state: state.TrainState, batches: dict) -> tuple[state.TrainState, dict]:
        """Takes a step with each of a call's batches; gives the state after them and their sums, as they come."""
        return self._calls[len(batches["mask"])](train_state, self._data, self._place(batches))

    def _place(self, batches: dict) -> dict:
        return parallel.place(batches, self._mesh, self._config.parallel.mapper, batch_axis=1)
