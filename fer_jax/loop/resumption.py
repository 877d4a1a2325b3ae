"""Makes a run resumable: locks its workdir, and saves and restores its state and progress together."""

import contextlib
import dataclasses
import os
import time

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from fer_jax import config as config_lib
from fer_jax.errors import Diverged, UserError
from fer_jax.inference.preprocessing import Preprocessing
from fer_jax.loop.program import Program
from fer_jax.loop.progress import Progress
from fer_jax.recipe.state import TrainState
from fer_jax.system import accelerators
from fer_jax.system.terminal import Terminal
from fer_jax.workdir import guards
from fer_jax.workdir.checkpoints import Checkpoints, Damaged
from fer_jax.workdir.events import MetricsWriter
from fer_jax.workdir.paths import Workdir


class Saver:
    """Saves the state and progress of a run."""

    def __init__(self, checkpoints: Checkpoints, writer: MetricsWriter, progress: Progress, run_metadata: dict):
        self._checkpoints, self._writer = checkpoints, writer
        self._progress, self._run_metadata = progress, run_metadata

    def __call__(self, state: TrainState, *, validation: dict | None = None, is_best: bool = False) -> None:
        """Saves `state`; raises Diverged instead if its weights or batch statistics are not finite."""
        # A signal may come before the first step after a checkpoint.
        if validation is None and self._checkpoints.latest_step == int(state.step):
            return  # stopped before another step was taken
        # Checked on the device at each save: a checkpoint that can only diverge again is useless.
        if not _is_finite((state.params, state.batch_stats)):
            raise Diverged("the weights or the batch statistics are not finite")
        metadata = self._run_metadata | {"validation": validation, "progress": dataclasses.asdict(self._progress)}
        self._writer.sync()  # a checkpoint's events must be on the disk before it is
        self._checkpoints.save(state, metadata, is_best=is_best)


@jax.jit
def _is_finite(tree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def open_workdir(
    stack: contextlib.ExitStack, config: config_dict.ConfigDict, workdir: Workdir, terminal: Terminal
) -> None:
    """Locks the workdir until `stack` ends; raises UserError if it is in use or holds a run of another config."""
    with workdir.time_limit():
        # Checked before the folder and the lock are made, so that a mistake leaves nothing behind.
        if workdir.config.exists():
            config_lib.refuse_differences(
                config,
                config_lib.load(workdir.config),
                workdir=workdir.path,
            )
        elif found := workdir.files_of_a_run():
            raise UserError(
                f"{workdir.path} holds {found}, but no config.json, so it is not a run of fer_jax, and training would "
                "write over it; choose another --workdir"
            )
        workdir.path.mkdir(parents=True, exist_ok=True)
        stack.enter_context(guards.hold_lock(workdir, terminal))


def require_visible(workdir: Workdir, seconds: float = 60) -> None:
    """Raises UserError if this process doesn't see the workdir that the first process has opened."""
    deadline = time.monotonic() + seconds
    # A network file system may show a new file late.
    while not (workdir.is_in_bucket or workdir.lock.exists()):
        if time.monotonic() > deadline:
            raise UserError(
                f"process {jax.process_index()} doesn't see {workdir.lock}, which process 0 has made; all processes of "
                "a run must share its workdir"
            )
        time.sleep(0.5)


def resolve(config: config_dict.ConfigDict, workdir: Workdir, terminal: Terminal) -> config_dict.ConfigDict:
    """Returns `config` as stored with the run: with a dtype in place of 'auto', and the absolute path of FER+'s file.

    The dtype is that of the run in `workdir`, or this machine's.
    """
    resolved = config.copy_and_resolve_references()
    # Evaluation finds the votes by the stored config, and may run in another working directory.
    if config.dataset.ferplus:
        expanded = config_lib.expand_path(config.dataset.ferplus, "config.dataset.ferplus")
        resolved.dataset.ferplus = os.path.abspath(expanded)
    if config.model.dtype != "auto":
        return resolved
    with workdir.time_limit():
        stored = config_lib.load(workdir.config).model.dtype if workdir.config.exists() else "auto"
    resolved.model.dtype = accelerators.resolve_dtype(stored)
    if stored != "auto":
        reason = "as the run in this workdir started"
    elif jax.default_backend() != "cpu":
        is_fast = resolved.model.dtype == "bfloat16"
        reason = "accelerators compute in it" if is_fast else "this GPU has no bfloat16 arithmetic"
    else:
        has = "has" if resolved.model.dtype == "bfloat16" else "has no"
        reason = f"this processor {has} bfloat16 arithmetic"
    terminal.say(f"model.dtype=auto: {resolved.model.dtype}, {reason}.")
    return resolved


def restore(
    checkpoints: Checkpoints, program: Program, run_metadata: dict, workdir: Workdir, terminal: Terminal
) -> tuple[TrainState | None, Progress]:
    """Returns the state and progress of the newest intact checkpoint; None and new progress if there is none."""
    for step in checkpoints.steps:
        try:
            stored = checkpoints.metadata(step)
            _refuse_other_run(step, stored, run_metadata)
            state = checkpoints.restore(step, program.abstract_state)
        except Damaged as error:
            terminal.say(f"{error}; it is moved to {checkpoints.set_aside(step)}.")
            continue
        terminal.say(f"Resuming from the checkpoint of step {step}.")
        _say_other_convolution(stored, run_metadata, terminal)
        return state, Progress.from_stored(stored["progress"])
    # Starting over would overwrite the metrics of a run that may still be rescued by hand.
    if checkpoints.has_damaged:
        raise UserError(f"{workdir.path} has no other checkpoint; to begin anew, choose another --workdir")
    return None, Progress()


def _say_other_convolution(stored: dict, ours: dict, terminal: Terminal) -> None:
    # Version 0.1 did not store which convolution it computed with.
    there, here = (metadata.get("computation", {}).get("conv") for metadata in (stored, ours))
    if there and there != here:
        terminal.say(f"Convolutions are {here} here and were {there} before: the last bits of what follows differ.")


def _refuse_other_run(step: int, stored: dict, ours: dict) -> None:
    # Compared by content, not by path: the same csv may be elsewhere in the next job.
    if stored["dataset_fingerprint"] != ours["dataset_fingerprint"]:
        where = f" at {stored['dataset_path']}" if stored.get("dataset_path") else ""
        raise UserError(
            f"the run was started on {stored['dataset']} ({stored['dataset_fingerprint']}){where}, not on "
            f"{ours['dataset']} ({ours['dataset_fingerprint']}): choose another --workdir, or say by --data where the "
            "run's data are now"
        )
    pairs = {
        "class_names": (stored["class_names"], ours["class_names"]),
        "preprocessing": (
            Preprocessing.from_metadata(stored["preprocessing"]),
            Preprocessing.from_metadata(ours["preprocessing"]),
        ),
    }
    own_config, stored_config = (
        config_lib.from_stored(metadata["config"], source=f"the checkpoint of step {step}")
        for metadata in (ours, stored)
    )
    pairs |= {
        f"config.{key}": (theirs, own)
        for key, (own, theirs) in config_lib.result_differences(own_config, stored_config).items()
        if key.startswith("model.")
    }
    different = [f"{key} {theirs!r} there and {own!r} here" for key, (theirs, own) in pairs.items() if theirs != own]
    if different:
        raise UserError(f"the checkpoint of step {step} is of another network: {', '.join(different)}")
