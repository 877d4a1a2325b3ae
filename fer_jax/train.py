"""One training run, read from top to bottom: data, program, workdir, loop, ends, report."""

import contextlib
import time

import jax
from ml_collections import config_dict

from fer_jax import config as config_lib
from fer_jax import evaluate, parallel
from fer_jax.data.dataset import Dataset
from fer_jax.data.load import load_dataset
from fer_jax.errors import Diverged, UserError
from fer_jax.inference import metrics
from fer_jax.inference.preprocessing import make_preprocessing
from fer_jax.inference.trained_model import TrainedModel, describe_computation, make_model
from fer_jax.loop.initial import read_initial
from fer_jax.loop.meter import Meter, Profiler
from fer_jax.loop.program import Program
from fer_jax.loop.resumption import Saver, open_workdir, require_visible, resolve, restore
from fer_jax.loop.start import start
from fer_jax.models import flops
from fer_jax.native import build
from fer_jax.recipe.loss import describe_targets
from fer_jax.recipe.state import num_parameters
from fer_jax.system import collector, processes
from fer_jax.system.signals import Stopped, StopRequest
from fer_jax.system.terminal import Terminal, describe_speed
from fer_jax.workdir import report, selection
from fer_jax.workdir.checkpoints import Checkpoints
from fer_jax.workdir.events import MetricsWriter, read_events
from fer_jax.workdir.paths import Workdir, write_whole

_OPTIMIZERS = {"adam": "Adam", "sgd": "SGD"}


def train(config: config_dict.ConfigDict, workdir: Workdir, stop: StopRequest) -> None:
    """Trains the run of `workdir`, from its latest checkpoint if there is one, and reports on its best checkpoint.

    Raises:
      UserError: config or data can't be used, or the workdir is in use or holds another run, which is left unchanged.
      StorageError: a file can't be written or read.
      Diverged: the loss or the weights are not finite.
      Stopped: a signal was received; the run is saved.
    """
    is_primary = jax.process_index() == 0
    terminal = Terminal(is_primary=is_primary)

    with contextlib.ExitStack() as stack:
        # --- Data, network and program: what is compiled, and its batches. They are the same in every process.
        with processes.agreeing_on_errors():
            config = resolve(config, workdir, terminal)
            dataset = load_dataset(config.dataset, terminal)
            train_split, validation_split = dataset.split("train"), dataset.split("validation")
            _require_selectable(config, dataset)
        processes.require_agreement(
            {"the dataset": f"{dataset.name} ({dataset.fingerprint})"} | config_lib.shared_values(config)
        )
        terminal.say(f"Data set: {dataset.describe()}")
        mesh = parallel.make_mesh()
        model = make_model(config.model, num_classes=len(dataset.class_names))
        preprocessing = make_preprocessing(config, dataset.image_shape)
        program = Program(config, model, preprocessing, train_split, mesh)
        evaluator = evaluate.make_evaluator(config, model, preprocessing, stop)

        # --- Workdir: locked, and either empty or a run of this config.
        with processes.agreeing_on_errors():
            if is_primary:
                open_workdir(stack, config, workdir, terminal)
        with processes.agreeing_on_errors(), workdir.time_limit():
            require_visible(workdir)
        # A separate stack, since the report needs the last checkpoint and the lock must outlive both.
        saving = stack.enter_context(contextlib.ExitStack())
        checkpoints = saving.enter_context(Checkpoints(workdir))
        run_metadata = {
            "config": config.to_dict(),
            "class_names": list(dataset.class_names),
            "preprocessing": preprocessing.to_metadata(),
            "dataset": dataset.name,
            "dataset_fingerprint": dataset.fingerprint,
            "dataset_path": dataset.path,
            "computation": describe_computation(model),
        }

        # --- State: restored from the newest intact checkpoint, or else the initial state.
        state, progress = restore(checkpoints, program, run_metadata, workdir, terminal)
        # A resumed run no longer needs the file that it started from.
        initial = read_initial(config, run_metadata, program.abstract_state, terminal) if state is None else None
        step, patience = 0 if state is None else int(state.step), config.early_stopping.patience
        with processes.agreeing_on_errors(), workdir.time_limit():
            if is_primary:
                # Saved only after `restore`, which makes sure that this is the same run: dataset.path may have changed.
                write_whole(workdir.config, config_lib.to_json(config))
        if progress.is_complete(config.num_epochs, patience):
            terminal.say(f"The run in {workdir.path} is complete: {progress.epochs} epochs.")
        else:
            _announce(config, program, mesh, workdir, terminal)
            state = start(program, state, initial, terminal)
        writer = saving.enter_context(
            contextlib.closing(
                MetricsWriter(
                    workdir,
                    step=step,
                    epochs=progress.epochs,
                    common={key: run_metadata[key] for key in ("dataset", "dataset_fingerprint")},
                    is_primary=is_primary,
                )
            )
        )
        # Before this point a signal ends the process at once, since there is nothing to save.
        stack.enter_context(stop)

        # --- Loop: epochs of steps, each epoch followed by an evaluation and a checkpoint.
        save = Saver(checkpoints, writer, progress, run_metadata)
        # One iterator for all epochs, so that it prefetches beyond the end of an epoch.
        batches = program.batches(step, config.num_epochs * program.steps_per_epoch)
        profiler = Profiler(
            workdir.profile,
            num_steps=config.log.profile_steps,
            first_step=step,
            steps_per_epoch=program.steps_per_epoch,
        )
        collector.resume()
        # Raised only after the history is written, since a stopped run has a history too.
        interrupted: Stopped | Diverged | None = None
        try:
            while not progress.is_complete(config.num_epochs, patience):
                started, epoch = time.perf_counter(), progress.epochs + 1
                epoch_end = epoch * program.steps_per_epoch
                title = f"epoch {epoch:>2}/{config.num_epochs}"
                meter = Meter(
                    progress,
                    writer,
                    terminal,
                    epoch=epoch,
                    log_every=config.log.every_steps,
                    flops=program.flops,
                    max_consecutive_skips=config.train.skip_nonfinite or 0,
                    peak=flops.peak(mesh.devices.flat),
                )
                terminal.start_epoch(
                    title, first=step - epoch_end + program.steps_per_epoch, total=program.steps_per_epoch
                )
                meter.resume()
                while step < epoch_end:
                    if stop.should_stop(step // config.train.steps_per_call):
                        meter.flush()  # the checkpoint must have the metrics of its last step
                        raise Stopped(stop.received)
                    profiler.follow(step, meter)
                    # Transfers between host and device must be explicit: an accidental one is an error, not a delay.
                    with jax.transfer_guard("disallow"):
                        call_batches = next(batches)
                        num_steps = len(call_batches["index"])
                        state, metric_sums = program(state, call_batches)
                        step += num_steps
                        meter.push(step, metric_sums)
                    save_every = config.checkpoint.every_steps
                    if save_every and step < epoch_end and step % save_every < num_steps:
                        meter.pause()
                        save(state)
                        meter.resume()
                profiler.stop(meter)
                meter.end_epoch()
                terminal.end_epoch()

                trained = progress.mean()
                validation = {}
                # The average comes last, because `_select` prefers the last of equally good weights.
                for kind, variables in (("validation", state.variables), ("validation_ema", state.ema)):
                    if variables is not None:
                        sums = evaluator(variables, validation_split)[preprocessing.view]
                        validation[kind] = metrics.selection_metrics(sums)
                        writer.write(step=step, epoch=epoch, kind=kind, **validation[kind])
                chosen = _select(validation, config.early_stopping.metric) | {"view": preprocessing.view}
                is_best = progress.end_epoch(chosen, min_delta=config.early_stopping.min_delta)
                is_last = progress.is_complete(config.num_epochs, patience)
                # The best epoch is always saved, so that it can be restored.
                if is_best or is_last or epoch % config.checkpoint.every_epochs == 0:
                    save(state, validation=chosen, is_best=is_best)
                listed = "  ".join(
                    f"{kind.replace('_', ' ')} loss {found['loss']:.4f}  accuracy {found['accuracy']:.2%}"
                    # Marks the weights that are the best so far: the current ones or their average.
                    f"{' (best)' if is_best and chosen['is_ema'] == (kind == 'validation_ema') else ''}"
                    for kind, found in validation.items()
                )
                terminal.say(
                    f"{title}  loss {trained['loss']:.4f}  accuracy {trained['accuracy']:.2%}  |  {listed}"
                    f"{'' if is_best else ' ' * len(' (best)')}  |  "
                    f"{describe_speed(meter.speed())}, {time.perf_counter() - started:.0f} s"
                )

            # --- Ends: complete, stopped or diverged.
            if progress.epochs < config.num_epochs:
                terminal.say(f"Stopped early: no better validation accuracy in {patience} epochs.")
        except Stopped as error:
            interrupted = error
            try:
                save(state)
                checkpoints.wait()
                terminal.say(f"Stopped and saved at step {step}; type the same command to resume.")
            except Diverged as diverged:
                interrupted = _with_advice(diverged, step, checkpoints.latest_step, config)
        except Diverged as error:
            interrupted = _with_advice(error, step, checkpoints.latest_step, config)
        finally:
            profiler.stop()
            terminal.end_epoch()
        if is_primary:
            writer.sync()
            with workdir.time_limit():
                report.write_history(
                    read_events(workdir),
                    dataset_name=dataset.name,
                    dataset_fingerprint=dataset.fingerprint,
                    targets=describe_targets(config),
                    metric=config.early_stopping.metric,
                    folder=workdir.report,
                )
        # Closed before an exception is raised: after one, several processes don't wait for the last save to be written.
        saving.close()
        if interrupted:
            raise interrupted

        # --- Report: the best checkpoint, evaluated on validation and test.
        _report(config, workdir, dataset, checkpoints.best_step, stop, terminal)


def _require_selectable(config: config_dict.ConfigDict, dataset: Dataset) -> None:
    is_copy = dataset.split("validation").is_copy
    if config.early_stopping.metric == "accuracy_without_copies" and (is_copy is None or is_copy.all()):
        raise UserError(
            "config.early_stopping.metric is accuracy_without_copies, but each validation image of "
            f"{dataset.name} is in train too; accuracy can be selected by"
        )


def _select(validation: dict[str, dict], metric: str) -> dict:
    """Returns the metrics of the better weights, with is_ema and score, the metric by which they were chosen."""
    kind = max(reversed(validation), key=lambda kind: validation[kind][metric])
    return validation[kind] | {"score": validation[kind][metric], "is_ema": kind == "validation_ema"}


def _announce(config: config_dict.ConfigDict, program: Program, mesh, workdir: Workdir, terminal: Terminal) -> None:
    devices, num_processes = mesh.devices.flat, jax.process_count()
    conv, cost = build.choose(config.model.conv, dtype=config.model.dtype, backend=jax.default_backend())
    if cost:
        terminal.say(f"model.conv=auto: {cost}.")
    terminal.say(
        f"Device:   {len(devices)} x {devices[0].device_kind} ({devices[0].platform}), "
        f"{num_processes} process{'es' if num_processes > 1 else ''}, {config.parallel.mapper}\n"
        f"Network:  ResNet-{config.model.depth}, {num_parameters(program.abstract_state.params):,} parameters, "
        f"{program.flops / 1e9:.3g} GFLOP to train on an image, {config.model.dtype}, {conv} convolutions\n"
        f"Training: up to {config.num_epochs} epochs of {program.steps_per_epoch} steps of {config.batch_size} "
        f"images, {_OPTIMIZERS[config.optimizer.name]} at "
        f"{config.optimizer.learning_rate} ({config.optimizer.schedule}), seed {config.seed}\n"
        f"Workdir:  {workdir.path}"
    )


def _with_advice(error: Diverged, step: int, kept: int | None, config: config_dict.ConfigDict) -> Diverged:
    return Diverged(
        f"Training diverged by step {step}: {error}. "
        + (f"The checkpoint of step {kept} is kept. " if kept is not None else "")
        + f"The likely cause is config.optimizer.learning_rate, {config.optimizer.learning_rate}: try a lower one, "
        "config.optimizer.warmup_epochs or config.optimizer.clip_norm. If single steps break, "
        "config.train.skip_nonfinite leaves them out."
    )


def _report(
    config: config_dict.ConfigDict,
    workdir: Workdir,
    dataset: Dataset,
    best_step: int,
    stop: StopRequest,
    terminal: Terminal,
) -> None:
    """Evaluates the best checkpoint on validation and test, unless its reports exist already."""
    splits = [split for split in ("validation", "test") if split in dataset.splits]
    views = config_lib.report_views(config)
    # Reports by --mode=evaluate don't choose the view, and the config may name others than when they were written.
    is_chosen = set(views) <= {config_lib.training_view(config)} or selection.is_of(workdir, best_step)
    if is_chosen and all(report.is_reported(workdir.report, split, step=best_step, views=views) for split in splits):
        terminal.say(f"Report, curves and confusion matrices: {workdir.report}")
        return
    evaluate.report_checkpoint(
        TrainedModel.load(workdir),
        workdir,
        dataset,
        splits=splits,
        views=views,
        selects_view=True,
        selected_on=evaluate.describe_selection(config, "best"),
        strict=False,
        stop=stop,
        terminal=terminal,
    )
    if "test" not in splits:
        terminal.say(f"\n{dataset.name} has no test split, so there is no report on it.")
    terminal.say(f"\nReport, curves and confusion matrices: {workdir.report}")
