"""The training program of a run: the optimizer, the compiled training steps, and the batches that they take."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_dict

from fer_jax import parallel
from fer_jax.data.dataset import Split
from fer_jax.errors import UserError
from fer_jax.inference.preprocessing import Preprocessing
from fer_jax.models import flops
from fer_jax.models.resnet import ResNet
from fer_jax.recipe import by_operation, optimizer, state
from fer_jax.recipe.images import AugmentConfig
from fer_jax.recipe.loss import balanced_weights
from fer_jax.recipe.mixing import MixConfig
from fer_jax.recipe.step import make_train_step, repeat


def make_training(
    config: config_dict.ConfigDict,
    model: ResNet,
    preprocessing: Preprocessing,
    mesh: Mesh,
    *,
    steps_per_epoch: int,
    class_weights: np.ndarray | None = None,
) -> tuple[Callable, Callable[[], state.TrainState]]:
    """Returns the training call over `mesh` (see `recipe.step.repeat`), and a function that makes the first state."""
    schedule = optimizer.make_schedule(config.optimizer, steps_per_epoch=steps_per_epoch, num_epochs=config.num_epochs)
    transformation = optimizer.make_optimizer(config.optimizer, schedule)
    augment_config = AugmentConfig(**config.augment)
    ema_decay = state.ema_decay(config.ema.half_life, steps_per_epoch)
    train_step = make_train_step(
        model,
        transformation,
        schedule=schedule,
        preprocess=preprocessing,
        augment_config=augment_config,
        mix_config=MixConfig(**config.mix),
        steps_per_epoch=steps_per_epoch,
        num_epochs=config.num_epochs,
        label_smoothing=config.loss.label_smoothing,
        class_weights=class_weights,
        ema_decay=ema_decay,
        seed=config.seed,
        axis_name=parallel.AXIS_NAME,
        grad_accum_steps=config.train.grad_accum_steps,
        reduce_dtype=config.parallel.reduce_dtype,
        skip_nonfinite=config.train.skip_nonfinite is not None,
    )
    # Only a new run needs the first state; a resumed run restores its state.
    create = functools.partial(
        state.create,
        model,
        transformation,
        seed=config.seed,
        image_shape=augment_config.output_shape(preprocessing.image_shape),
        has_ema=ema_decay is not None,
    )
    return parallel.map_step(repeat(train_step), mesh, config.parallel.mapper, batch_axis=1, donate=True), create


class Program:
    """The compiled training program of a run.

    Attributes: steps_per_epoch; flops, the FLOPs of training on one image (forward and backward). Raises UserError
    if the batch size is not a multiple of the devices times the microbatches, or if `split` has fewer images than it.
    """

    def __init__(
        self, config: config_dict.ConfigDict, model: ResNet, preprocessing: Preprocessing, split: Split, mesh: Mesh
    ):
        _check_batch_size(config, split, mesh)
        self._config, self._split, self._mesh = config, split, mesh
        self.steps_per_epoch = split.steps_per_epoch(config.batch_size)
        self._mapped, self._create = make_training(
            config,
            model,
            preprocessing,
            mesh,
            steps_per_epoch=self.steps_per_epoch,
            class_weights=(
                balanced_weights(split.labels, model.num_classes) if config.loss.class_weights == "balanced" else None
            ),
        )
        # Traced once for all its uses, since tracing a network takes a tenth of the time of a start.
        self._first = by_operation.trace(self._create)
        # Making the first weights applies the network once, to one image.
        self.flops = flops.TRAINING_PASSES * flops.count(self._first.closed_jaxpr.jaxpr)
        # FER-2013's training images, 66 MB, fit every device, and a step then needs only their indices.
        self._data = parallel.replicate(split.arrays(), mesh) if config.dataset.loader == "device" else {}

    @functools.cached_property
    def abstract_state(self) -> state.TrainState:
        """The shapes, dtypes and shardings of the state."""
        sharding = NamedSharding(self._mesh, PartitionSpec())
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), self._first.shapes)

    def first_state(self, initial: Mapping[str, Any] | None = None) -> state.TrainState:
        """Returns the state before the first step, on every device; initial: see `state.create`."""
        # Run only once: compiled as a whole it would take ten times as long and give the same bits.
        traced = self._first if initial is None else by_operation.trace(lambda: self._create(initial=initial))
        return parallel.replicate(traced(), self._mesh)

    def lower(self, first_step: int) -> dict[int, jax.stages.Lowered]:
        """Returns the call for each number of steps that a call may take, lowered but not yet compiled.

        first_step: the step at which the run starts or resumes.
        """
        batch_size = self._config.batch_size // jax.process_count()
        lowered = {}
        # Each number of steps needs a program of its own.
        for num_steps in self._call_lengths(first_step):
            index = np.zeros((num_steps, batch_size), np.int32)
            arrays = {} if self._data else self._split.arrays()
            batches = self._shard({key: array[index] for key, array in arrays.items()} | {"index": index})
            lowered[num_steps] = self._mapped.lower(self.abstract_state, self._data, batches)
        return lowered

    def _call_lengths(self, first_step: int) -> set[int]:
        """Returns the numbers of steps that calls take from `first_step` on (see `pipeline.train_batches`)."""
        whole = min(self._config.train.steps_per_call, self.steps_per_epoch)
        begun = first_step % self.steps_per_epoch
        # An epoch may end with a shorter call; a run that was stopped at another steps_per_call begins with one.
        left = min(whole - begun % whole, self.steps_per_epoch - begun)
        return {whole, self.steps_per_epoch % whole, left} - {0}

    def compile(self, lowered: Mapping[int, jax.stages.Lowered]) -> None:
        """Compiles what `lower` returned, before the first call."""
        # Compiled before the loop: no step's time includes it, and a signal in the loop always finds a state to save.
        self._calls = {num_steps: call.compile() for num_steps, call in lowered.items()}

    def batches(self, first_step: int, last_step: int) -> Iterator[dict]:
        """Returns the batches of each call from one step up to another, on the host (see `pipeline.train_batches`)."""
        from fer_jax.data import pipeline  # imports TensorFlow, which takes seconds

        return pipeline.train_batches(
            self._split,
            seed=self._config.seed,
            batch_size=self._config.batch_size,
            first_step=first_step,
            last_step=last_step,
            steps_per_call=self._config.train.steps_per_call,
            indices_only=bool(self._data),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def __call__(self, train_state: state.TrainState, batches: dict) -> tuple[state.TrainState, dict]:
        """Takes one step with each batch of a call; returns the state after them and their metric sums, [steps]."""
        return self._calls[len(batches["index"])](train_state, self._data, self._shard(batches))

    def _shard(self, batches: dict) -> dict:
        return parallel.shard_batch(batches, self._mesh, self._config.parallel.mapper, batch_axis=1)


def _check_batch_size(config: config_dict.ConfigDict, split: Split, mesh: Mesh) -> None:
    batch_size, microbatches = config.batch_size, config.train.grad_accum_steps
    if batch_size % (mesh.size * microbatches):
        raise UserError(
            f"config.batch_size is {batch_size}; it must be a multiple of the {mesh.size} devices"
            + (f" times config.train.grad_accum_steps, {microbatches}" if microbatches > 1 else "")
        )
    if batch_size > len(split):
        raise UserError(f"config.batch_size is {batch_size}, more than the {len(split)} training images")
