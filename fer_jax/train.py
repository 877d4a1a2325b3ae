"""The loop: epochs, evaluation, early stopping, checkpoints. No maths in it."""

import concurrent.futures
import contextlib
import dataclasses
import importlib
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from ml_collections import config_dict

from fer_jax import config as config_lib
from fer_jax import evaluate, parallel
from fer_jax.data import load as source
from fer_jax.data.dataset import CLASS_NAMES, Dataset
from fer_jax.errors import Diverged, UserError
from fer_jax.inference import metrics
from fer_jax.loop.meter import Meter
from fer_jax.loop.profiler import Profiler
from fer_jax.loop.program import Program
from fer_jax.loop.progress import Progress
from fer_jax.models import flops
from fer_jax.recipe import state as state_lib
from fer_jax.system.signals import StopRequest
from fer_jax.system.terminal import Terminal, describe_speed
from fer_jax.workdir import lock, report, stall
from fer_jax.workdir.checkpoints import Checkpoints, Damaged
from fer_jax.workdir.events import MetricsWriter, read_events


def run(config: config_dict.ConfigDict, workdir: epath.Path, stop: StopRequest) -> int:
    """Trains the run of `workdir`, from its latest checkpoint if there is one; gives the exit status.

    0: done, with a report of the best checkpoint; 3: diverged; 128 + signal: stopped and saved. Raises UserError,
    before anything is touched, where the workdir holds a run of another config or data set, or another process is at
    it; StorageError where something can't be written.
    """
    is_primary = jax.process_index() == 0
    terminal = Terminal(is_primary=is_primary)
    mesh = parallel.make_mesh()
    _check_divisible(config, mesh)
    if (workdir / "config.json").exists():
        config_lib.refuse_differences(
            config, workdir, advice="Choose another --workdir, or the run's own config to go on with it"
        )
    dataset = source.load(config.dataset.source, config.dataset.path, config.dataset.cache_dir, config.seed)
    terminal.say(f"Data set: {dataset.describe()}")
    trainer = Trainer(config, dataset, mesh, stop, terminal)
    with contextlib.ExitStack() as stack:
        if is_primary:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.hold(workdir))
            config_lib.save(config, workdir / "config.json")
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            trainer.prepare(workdir, checkpoints)
            # Until here a signal ends the process at once, since there is nothing to save.
            stack.enter_context(stop)
            status = trainer.train()
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
    """One run: its program, its state, its loop."""

    def __init__(
        self, config: config_dict.ConfigDict, dataset: Dataset, mesh: Mesh, stop: StopRequest, terminal: Terminal
    ):
        self._config, self._dataset, self._stop, self._terminal = config, dataset, stop, terminal
        self._validation_split, self._mesh = dataset.split("validation"), mesh
        model = evaluate.make_network(config.model)
        self._program = Program(config, model, dataset.split("train"), mesh)
        self._steps_per_epoch = self._program.steps_per_epoch
        self._evaluate = evaluate.make_evaluator(config, model, mesh, stop)

    def prepare(self, workdir: epath.Path, checkpoints: Checkpoints) -> None:
        """Restores or makes the state, and compiles what trains it."""
        self._checkpoints, self._workdir = checkpoints, workdir
        abstract = self._program.abstract_state
        self._state, self._progress = self._restore(abstract) or (None, Progress())
        self._step = 0 if self._state is None else int(self._state.step)
        if self._is_complete():
            self._terminal.say(f"The run in {workdir} is complete: {self._progress.epochs} epochs.")
            return
        self._announce(abstract.params)
        with concurrent.futures.ThreadPoolExecutor() as executor:
            compiling = executor.submit(self._program.compile)
            # TensorFlow takes seconds to import: while XLA compiles, they cost nothing.
            executor.submit(importlib.import_module, "fer_jax.data.pipeline")
            executor.submit(importlib.import_module, "clu.metric_writers")
            if self._state is None:
                self._state = self._program.first_state()
            self._terminal.say(f"Compiled in {compiling.result():.1f} s\n")

    def train(self) -> int:
        """Trains to the end of the last epoch or of the patience; gives the exit status."""
        workdir, is_primary = self._workdir, jax.process_index() == 0
        self._writer = MetricsWriter(
            workdir,
            step=self._step,
            epochs=self._progress.epochs,
            common={"dataset": self._dataset.name, "dataset_fingerprint": self._dataset.fingerprint},
            is_primary=is_primary,
        )
        with contextlib.closing(self._writer):
            status = self._train_to_status()
            if is_primary:
                with stall.limit(workdir / "report"):
                    report.write_history(read_events(workdir), self._dataset, workdir / "report")
        if self._progress.should_stop:
            self._terminal.say(
                f"Stopped early: no better validation accuracy in {self._config.early_stopping.patience} epochs."
            )
        return status

    def _is_complete(self) -> bool:
        return self._progress.should_stop or self._progress.epochs == self._config.num_epochs

    def _restore(self, abstract) -> tuple[state_lib.TrainState, Progress] | None:
        """Gives state and progress of the newest checkpoint that is whole; None where there is no checkpoint."""
        for step in self._checkpoints.steps:
            try:
                stored = self._checkpoints.run(step)
                self._refuse_other_run(step, stored)
                state = self._checkpoints.restore(step, abstract)
            except Damaged as error:
                self._terminal.say(f"{error}; it is moved to {self._checkpoints.set_aside(step)}.")
                continue
            self._terminal.say(f"Going on from the checkpoint of step {step}.")
            return state, Progress(**stored["progress"])
        if self._checkpoints.has_damaged:
            raise UserError(f"{self._workdir} has no other checkpoint; to begin anew, choose another --workdir")
        return None

    def _refuse_other_run(self, step: int, stored: dict) -> None:
        if stored["dataset_fingerprint"] != self._dataset.fingerprint:
            raise UserError(
                f"the run was started on {stored['dataset']} ({stored['dataset_fingerprint']}), not on "
                f"{self._dataset.name} ({self._dataset.fingerprint}): choose another --workdir"
            )
        evaluate.refuse_other_network(self._config, step, stored)

    def _announce(self, params) -> None:
        config, devices, processes = self._config, self._mesh.devices.flat, jax.process_count()
        self._terminal.say(
            f"Device:   {len(devices)} x {devices[0].device_kind} ({devices[0].platform}), "
            f"{processes} process{'es' if processes > 1 else ''}, {config.parallel.mapper}\n"
            f"Network:  ResNet-{config.model.depth}, {state_lib.num_parameters(params):,} parameters, "
            f"{self._program.flops / 1e9:.3g} GFLOP to train on an image, {config.model.dtype}\n"
            f"Training: up to {config.num_epochs} epochs of {self._steps_per_epoch} steps of {config.batch_size} "
            f"images, Adam at {config.optimizer.learning_rate} ({config.optimizer.schedule}), seed {config.seed}\n"
            f"Workdir:  {self._workdir}"
        )

    def _train_to_status(self) -> int:
        """Trains, says how it ended and gives the exit status."""
        try:
            if not self._train_unless_stopped():
                self._terminal.say(f"Stopped and saved at step {self._step}; the same command goes on from there.")
                return self._stop.exit_status
        except Diverged as error:
            kept = self._checkpoints.latest_step
            self._terminal.say(
                f"Training diverged by step {self._step}: {error}. "
                + (f"The checkpoint of step {kept} is kept. " if kept is not None else "")
                + f"The likely cause is config.optimizer.learning_rate, {self._config.optimizer.learning_rate}: "
                "try a lower one, config.optimizer.warmup_epochs or config.optimizer.clip_norm. If single steps "
                "break, config.train.skip_nonfinite leaves them out."
            )
            return 3
        finally:
            self._terminal.end_epoch()
        return 0

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
        batches = self._program.batches(self._step, self._config.num_epochs * self._steps_per_epoch)
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
                flops=self._program.flops,
                most_skipped=self._config.train.skip_nonfinite or 0,
                peak=flops.peak(self._mesh.devices.flat),
            )
            done = self._step - (epoch - 1) * self._steps_per_epoch
            self._terminal.start_epoch(title, first=done, total=self._steps_per_epoch)
            self._train_epoch(batches, meter, profiler, end=epoch * self._steps_per_epoch)
            self._terminal.end_epoch()
            trained, evaluation, improved = self._progress.mean(), *self._end_epoch(epoch)
            self._terminal.say(
                f"{title}  loss {trained['loss']:.4f}  accuracy {trained['accuracy']:.2%}  |  "
                f"validation loss {evaluation['loss']:.4f}  accuracy {evaluation['accuracy']:.2%}"
                f"{' (best)' if improved else '       '}  |  "
                f"{describe_speed(meter.speed())}, {time.perf_counter() - started:.0f} s"
            )

    def _train_epoch(self, batches: Iterator[dict], meter: Meter, profiler: Profiler, *, end: int) -> None:
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
                self._state, sums = self._program(self._state, call_batches)
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
        self._writer.sync()  # what is saved has its events
        self._checkpoints.save(self._state, run, improved=improved)


@jax.jit
def _is_finite(tree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _check_divisible(config: config_dict.ConfigDict, mesh: Mesh) -> None:
    batch_size, parts = config.batch_size, config.train.accumulate_steps
    if batch_size % (mesh.size * parts):
        raise UserError(
            f"config.batch_size is {batch_size}; it must be a multiple of the {mesh.size} devices"
            + (f" times config.train.accumulate_steps, {parts}" if parts > 1 else "")
        )
