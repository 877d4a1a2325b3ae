"""The loop: epochs, evaluation, early stopping, checkpoints. No maths in it."""

import contextlib
import dataclasses
import functools
import importlib
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import config_dict

from fer_jax import augment, evaluate, flops, metrics, optimizer, parallel, report, steps
from fer_jax import config as config_lib
from fer_jax import state as state_lib
from fer_jax.checkpoint import Checkpoints
from fer_jax.data import source
from fer_jax.data.dataset import CLASS_NAMES, IMAGE_SHAPE, Dataset
from fer_jax.errors import UserError
from fer_jax.meter import Meter
from fer_jax.profiler import Profiler
from fer_jax.progress import Diverged, Progress
from fer_jax.signals import StopRequest
from fer_jax.writers import MetricsWriter, Terminal, describe_speed, read_events


def run(config: config_dict.ConfigDict, workdir: pathlib.Path, stop: StopRequest) -> int:
    """Trains the run of `workdir`, from its latest checkpoint if there is one; gives the exit status.

    0: done, with a report of the best checkpoint; 3: diverged; 128 + signal: stopped and saved. Raises UserError,
    before anything is touched, where the workdir holds a run of another config or data set.
    """
    is_primary = jax.process_index() == 0
    terminal = Terminal(is_primary=is_primary)
    if (workdir / "config.json").exists():
        config_lib.refuse_differences(
            config, workdir, advice="Choose another --workdir, or the run's own config to go on with it"
        )
    dataset = source.load(config.dataset.source, config.dataset.path, config.dataset.cache_dir, config.seed)
    terminal.say(f"Data set: {dataset.describe()}")
    trainer = Trainer(config, dataset, stop, terminal)
    if is_primary:
        workdir.mkdir(parents=True, exist_ok=True)
        config_lib.save(config, workdir / "config.json")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        status = trainer.train(workdir, checkpoints)
    if status == 0:
        splits = [split for split in ("validation", "test") if split in dataset.splits]
        try:
            evaluate.report_checkpoint(
                config, workdir, dataset, splits=splits, checkpoint="best", stop=stop, say=terminal.say
            )
        except evaluate.Stopped:
            return stop.exit_status
        if "test" not in splits:
            terminal.say(f"\n{dataset.name} has no test split, so there is no report on it.")
        terminal.say(f"\nReport, curves and confusion matrices: {workdir / 'report'}")
    return status


class Trainer:
    """One run: its network, its compiled steps, its state, its loop."""

    def __init__(self, config: config_dict.ConfigDict, dataset: Dataset, stop: StopRequest, terminal: Terminal):
        self._config, self._dataset, self._stop, self._terminal = config, dataset, stop, terminal
        self._train_split, self._validation_split = dataset.split("train"), dataset.split("validation")
        self._mesh = parallel.make_mesh()
        _check_batch_size(config, len(self._train_split), self._mesh)
        self._steps_per_epoch = self._train_split.steps_per_epoch(config.batch_size)
        self._model = evaluate.make_network(config.model)
        self._flops = flops.training_flops(self._model, IMAGE_SHAPE)
        schedule = optimizer.make_schedule(
            config.optimizer, steps_per_epoch=self._steps_per_epoch, num_epochs=config.num_epochs
        )
        self._optimizer = optimizer.make(config.optimizer, schedule)
        train_step = steps.make_train_step(
            self._model,
            self._optimizer,
            schedule=schedule,
            ranges=augment.Ranges(**config.augment),
            label_smoothing=config.optimizer.label_smoothing,
            seed=config.seed,
            axis_name=parallel.AXIS,
            accumulate_steps=config.train.accumulate_steps,
            reduce_dtype=config.parallel.reduce_dtype,
        )
        mapper = config.parallel.mapper
        self._train_call = parallel.map_step(steps.repeat(train_step), self._mesh, mapper, batch_axis=1, donate=True)
        on_device = config.dataset.loader == "device"
        self._data = parallel.replicate(self._train_split.arrays(), self._mesh) if on_device else {}
        self._evaluate = evaluate.make_evaluator(config, self._model, self._mesh, stop)

    def train(self, workdir: pathlib.Path, checkpoints: Checkpoints) -> int:
        """Trains to the end of the last epoch or of the patience; gives the exit status."""
        self._checkpoints, self._workdir = checkpoints, workdir
        # The pipeline's TensorFlow takes seconds to import: while XLA compiles, they cost nothing.
        threading.Thread(target=importlib.import_module, args=("fer_jax.data.pipeline",), daemon=True).start()
        self._restore_or_create()
        if self._is_complete():
            self._terminal.say(f"The run in {workdir} is complete: {self._progress.epochs} epochs.")
            return 0
        self._announce(workdir)
        is_primary = jax.process_index() == 0
        self._writer = MetricsWriter(
            workdir,
            step=self._step,
            epochs=self._progress.epochs,
            common={"dataset": self._dataset.name, "dataset_fingerprint": self._dataset.fingerprint},
            is_primary=is_primary,
        )
        with contextlib.closing(self._writer):
            try:
                if not self._train_unless_stopped():
                    self._terminal.say(f"Stopped and saved at step {self._step}; the same command goes on from there.")
                    return self._stop.exit_status
            except Diverged as error:
                kept = checkpoints.latest_step
                self._terminal.say(
                    f"Training diverged at step {self._step}: {error}. "
                    + (f"The checkpoint of step {kept} is kept. " if kept is not None else "")
                    + f"config.optimizer.learning_rate is {self._config.optimizer.learning_rate}: try a lower one."
                )
                return 3
            finally:
                self._terminal.end_epoch()
                if is_primary:
                    report.write_history(read_events(workdir), self._dataset, workdir / "report")
        if self._progress.should_stop:
            self._terminal.say(
                f"Stopped early: no better validation accuracy in {self._config.early_stopping.patience} epochs."
            )
        return 0

    def _is_complete(self) -> bool:
        return self._progress.should_stop or self._progress.epochs == self._config.num_epochs

    def _restore_or_create(self) -> None:
        create = functools.partial(
            state_lib.create, self._model, self._optimizer, seed=self._config.seed, image_shape=IMAGE_SHAPE
        )
        # It runs once: XLA:CPU compiles it in a third of the time at this level, to the same bits.
        create = jax.jit(create, compiler_options={"xla_backend_optimization_level": 1})
        self._state, self._progress = parallel.replicate(create(), self._mesh), Progress()
        if self._checkpoints.latest_step is not None:
            latest = self._checkpoints.latest_step
            stored = self._checkpoints.run(latest)
            if stored["dataset_fingerprint"] != self._dataset.fingerprint:
                raise UserError(
                    f"the run was started on {stored['dataset']} ({stored['dataset_fingerprint']}), not on "
                    f"{self._dataset.name} ({self._dataset.fingerprint}): choose another --workdir"
                )
            self._terminal.say(f"Going on from the checkpoint of step {latest}.")
            self._state = self._checkpoints.restore(latest, self._state)
            self._progress = Progress(**stored["progress"])
        self._step = int(self._state.step)

    def _announce(self, workdir: pathlib.Path) -> None:
        config, devices, processes = self._config, self._mesh.devices.flat, jax.process_count()
        self._terminal.say(
            f"Device:   {len(devices)} x {devices[0].device_kind} ({devices[0].platform}), "
            f"{processes} process{'es' if processes > 1 else ''}, {config.parallel.mapper}\n"
            f"Network:  ResNet-{config.model.depth}, {state_lib.num_parameters(self._state.params):,} parameters, "
            f"{self._flops / 1e9:.2f} GFLOP to train on an image, {config.model.dtype}\n"
            f"Training: up to {config.num_epochs} epochs of {self._steps_per_epoch} steps of {config.batch_size} "
            f"images, Adam at {config.optimizer.learning_rate} ({config.optimizer.schedule}), seed {config.seed}\n"
            f"Workdir:  {workdir}"
        )

    def _train_unless_stopped(self) -> bool:
        """Trains until the run is complete, or saves and gives False if stopped; raises Diverged."""
        try:
            self._train_epochs()
        except evaluate.Stopped:
            self._save()
            return False
        return True

    def _train_epochs(self) -> None:
        """Trains until the run is complete; raises Stopped, with nothing lost, or Diverged."""
        calls = self._compile()
        batches = self._batches(self._step, self._config.num_epochs * self._steps_per_epoch)
        profiler = Profiler(self._workdir / "profile", num_steps=self._config.log.profile_steps, now=self._step)
        while not self._is_complete():
            started, epoch = time.perf_counter(), self._progress.epochs + 1
            title = f"epoch {epoch:>2}/{self._config.num_epochs}"
            meter = Meter(
                self._progress,
                self._writer,
                self._terminal,
                epoch=epoch,
                log_every=self._config.log.every_steps,
                flops=self._flops,
                peak=flops.peak(self._mesh.devices.flat),
            )
            done = self._step - (epoch - 1) * self._steps_per_epoch
            self._terminal.start_epoch(title, first=done, total=self._steps_per_epoch)
            self._train_epoch(calls, batches, meter, profiler, end=epoch * self._steps_per_epoch)
            self._terminal.end_epoch()
            trained, evaluation, improved = self._progress.mean(), *self._end_epoch(epoch)
            self._terminal.say(
                f"{title}  loss {trained['loss']:.4f}  accuracy {trained['accuracy']:.2%}  |  "
                f"validation loss {evaluation['loss']:.4f}  accuracy {evaluation['accuracy']:.2%}"
                f"{' (best)' if improved else '       '}  |  "
                f"{describe_speed(meter.speed())}, {time.perf_counter() - started:.0f} s"
            )

    def _batches(self, first_step: int, last_step: int) -> Iterator[dict]:
        from fer_jax.data import pipeline

        return pipeline.train_batches(
            self._train_split,
            seed=self._config.seed,
            batch_size=self._config.batch_size,
            first_step=first_step,
            last_step=last_step,
            steps_per_call=self._config.train.steps_per_call,
            indices_only=bool(self._data),
            host=jax.process_index(),
            num_hosts=jax.process_count(),
        )

    def _place(self, batches: dict) -> dict:
        return parallel.place(batches, self._mesh, self._config.parallel.mapper, batch_axis=1)

    def _train_epoch(
        self, calls: dict[int, Callable], batches: Iterator[dict], meter: Meter, profiler: Profiler, *, end: int
    ) -> None:
        save_every = self._config.checkpoint.every_steps or end
        meter.start()
        while self._step < end:
            if self._stop.is_agreed(self._step // self._config.train.steps_per_call):
                meter.flush()
                raise evaluate.Stopped
            profiler.follow(self._step, meter)
            # Whatever crosses between host and device here does so by name; a slip is an error, not a delay.
            with jax.transfer_guard("disallow"):
                call_batches = next(batches)
                num_steps = len(call_batches["mask"])
                self._state, sums = calls[num_steps](self._state, self._data, self._place(call_batches))
                self._step += num_steps
                meter.push(self._step, sums)
            if self._step < end and self._step % save_every < num_steps:
                meter.flush()
                self._save()
                meter.start()
        meter.end_epoch()

    def _end_epoch(self, epoch: int) -> tuple[dict, bool]:
        """Evaluates, takes the result in and saves; gives it, and whether it is the best so far."""
        variables = {"params": self._state.params, "batch_stats": self._state.batch_stats}
        sums = self._evaluate(variables, self._validation_split)
        evaluation = {"loss": metrics.mean_loss(sums), "accuracy": metrics.accuracy(sums)}
        improved = self._progress.end_epoch(evaluation, **self._config.early_stopping)
        self._writer.write(step=self._step, epoch=epoch, kind="validation", **evaluation)
        self._save(validation=evaluation, improved=improved)
        return evaluation, improved

    def _compile(self) -> dict[int, Callable]:
        """Compiles the training call for every number of steps it may take, so that no step's time contains it."""
        started = time.perf_counter()
        steps_per_call = min(self._config.train.steps_per_call, self._steps_per_epoch)
        batch_size = self._config.batch_size // jax.process_count()
        calls = {}
        for num_steps in {steps_per_call, self._steps_per_epoch % steps_per_call} - {0}:
            index = np.zeros((num_steps, batch_size), np.int32)
            arrays = {} if self._data else self._train_split.arrays()
            example = {key: array[index] for key, array in arrays.items()}
            batches = self._place(example | {"index": index, "mask": index == 0})
            calls[num_steps] = self._train_call.lower(self._state, self._data, batches).compile()
        self._terminal.say(f"Compiled in {time.perf_counter() - started:.1f} s\n")
        return calls

    def _save(self, *, validation: dict | None = None, improved: bool = False) -> None:
        """Saves the run as it stands; raises Diverged rather than save what is not finite."""
        if validation is None and self._checkpoints.latest_step == self._step:
            return  # stopped before anything was added to it
        if not _is_finite((self._state.params, self._state.batch_stats)):
            raise Diverged("the weights or the batch statistics are not finite")
        run = {
            "config": self._config.to_dict(),
            "class_names": list(CLASS_NAMES),
            "preprocessing": evaluate.PREPROCESSING,
            "dataset": self._dataset.name,
            "dataset_fingerprint": self._dataset.fingerprint,
            "validation": validation,
            "progress": dataclasses.asdict(self._progress),
        }
        self._checkpoints.save(self._state, run, improved=improved)


@jax.jit
def _is_finite(tree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _check_batch_size(config: config_dict.ConfigDict, num_examples: int, mesh: Mesh) -> None:
    batch_size, parts = config.batch_size, config.train.accumulate_steps
    if batch_size % (mesh.size * parts):
        raise UserError(
            f"config.batch_size is {batch_size}; it must be a multiple of the {mesh.size} devices"
            + (f" times config.train.accumulate_steps, {parts}" if parts > 1 else "")
        )
    if batch_size > num_examples:
        raise UserError(f"config.batch_size is {batch_size}, more than the {num_examples} training images")
