"""Orbax checkpoints: the newest two and the best of a run, each with checksums of its contents.

The checkpoint of step N, checkpoints/N/, has the items weights (params and batch_stats), ema (their moving average, if
the run has one), training (optimizer state and step) and record, in JSON: the format, the other items' checksums, the
step of the best checkpoint so far, and the metadata for evaluation and resumption beside the weights (the key `run`).
"""

import concurrent.futures
import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from fer_jax.errors import StorageError, UserError
from fer_jax.recipe.state import TrainState
from fer_jax.workdir import failures
from fer_jax.workdir.checksums import Damaged, items_of, require_sound_items, require_sound_record, with_checksums
from fer_jax.workdir.paths import Workdir

FORMAT = 1


class _KeepBest(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the checkpoint of one step, `step`."""

    step: int | None = None

    def should_preserve(self, checkpoints, *, context):
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run. It is a context manager, because saves run in the background.

    A single process copies the state on its device and does the rest, checksums included, during the next steps.
    Several processes save together, so they first copy the state to the host and compute the checksums.

    read_only: if True, nothing is created, moved or deleted. It is for reading while the run still writes checkpoints,
    or for a folder that can't be written or doesn't exist.
    """

    def __init__(self, workdir: Workdir, *, read_only: bool = False):
        policies = ocp.checkpoint_managers
        self._workdir, self._read_only = workdir, read_only
        path = workdir.checkpoints
        self._directory = path if path.is_absolute() else path.absolute()  # gs:// is absolute
        self._best = _KeepBest()
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._saving: concurrent.futures.Future | None = None
        with self._storage("read" if read_only else "written"):
            if not read_only:
                self._finish_replacements()
            self._manager = ocp.CheckpointManager(
                self._directory,
                # Orbax's own read_only is not used, because it prints a warning on standard error.
                options=ocp.CheckpointManagerOptions(
                    # The second newest is kept in case the newest turns out to be damaged.
                    preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(n=2), self._best]),
                    create=not read_only,
                    cleanup_tmp_directories=not read_only,  # left by a killed process
                ),
                item_handlers={
                    "weights": ocp.StandardCheckpointHandler(),
                    "ema": ocp.StandardCheckpointHandler(),
                    "training": ocp.StandardCheckpointHandler(),
                    "record": ocp.JsonCheckpointHandler(),
                },
            )
        self._best.step = self._find_best()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None and jax.process_count() > 1:
            return  # closing waits for the other processes, one of which may be gone
        try:
            # An exception that is being raised tells more than another one from closing.
            with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
                self._wait()
                with self._storage("written"):
                    self._manager.close()
        finally:
            self._executor.shutdown()

    def wait(self) -> None:
        """Waits until the last save is complete on the disk; raises StorageError if it failed."""
        self._wait()
        with self._storage("written"):
            self._manager.wait_until_finished()

    def _wait(self) -> None:
        """Waits for the background save of a single process, and raises its exception if it failed."""
        saving, self._saving = self._saving, None
        _ = saving and saving.result()

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, the newest first."""
        self._wait()
        return sorted(self._manager.all_steps(), reverse=True)

    @property
    def has_damaged(self) -> bool:
        """Whether damaged checkpoints were set aside, by this process or an earlier one."""
        return self._workdir.damaged.exists()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; None before the first."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the best validation accuracy; None before the first epoch's end."""
        return self._best.step

    def save(self, state: TrainState, metadata: Mapping[str, Any], *, is_best: bool) -> None:
        """Starts a save of `state` in the background; the arrays are copied first, so the caller may donate them.

        state: replicated on every device. metadata: JSON-serialisable, stored with the weights. is_best: whether this
        is the best checkpoint so far. Raises StorageError if this save, or the previous one in the background, failed.
        """
        self._require_writable()
        self._wait()
        step = int(state.step)
        if is_best:
            self._best.step = step
        record = {"format": FORMAT, "step": step, "best_step": self._best.step}
        # Converted to JSON at once, since the caller goes on to change the metadata.
        record["run"] = json.loads(json.dumps(dict(metadata)))
        if jax.process_count() > 1:
            self._save(step, items_of(state), record)
        else:
            # A copy on the device takes a thousandth of the time of a copy to the host.
            copied = jax.device_put(state, jax.tree.map(lambda x: x.sharding, state), may_alias=False)
            self._saving = self._executor.submit(self._save, step, items_of(copied), record)

    def _save(self, step: int, trees: dict[str, dict], record: dict) -> None:
        items = ocp.args.Composite(
            **{item: ocp.args.StandardSave(tree) for item, tree in trees.items()},
            record=ocp.args.JsonSave(with_checksums(record, trees)),
        )
        with self._storage("written"):
            # A step is saved again after a stop between an epoch's last step and the end of its evaluation.
            is_replacement = step in self._manager.all_steps()
            if is_replacement:
                self._move(step, self._workdir.replaced / str(step))
            self._manager.save(step, args=items)
            if is_replacement or jax.process_count() == 1:
                self._manager.wait_until_finished()
            if is_replacement:
                # Only now: until the new checkpoint is committed, the old one is the only complete one of this step.
                self._finish_replacements()

    def _move(self, step: int, target: epath.Path) -> None:
        """Moves the checkpoint of a step out of the manager's folder, and makes the manager reload its list."""
        self._manager.wait_until_finished()  # a save in the background isn't listed yet
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(target)
        ocp.multihost.sync_global_processes(f"move_{step}_{target.parent.name}")
        self._manager.reload()

    def _finish_replacements(self) -> None:
        """Deletes a replaced checkpoint whose successor is committed, and puts back one that has no successor."""
        if jax.process_index() == 0 and self._workdir.replaced.exists():
            for old in self._workdir.replaced.iterdir():
                new = self._directory / old.name
                # A bucket can't rename, so an uncommitted checkpoint already has its final name there.
                if new.exists() and ocp.utils.is_checkpoint_finalized(new):
                    old.rmtree()
                else:
                    if new.exists():
                        new.rmtree()
                    self._directory.mkdir(exist_ok=True)
                    old.rename(new)
            if self._workdir.replaced.exists():  # a bucket has no empty folders
                self._workdir.replaced.rmdir()
        ocp.multihost.sync_global_processes("finish_replacements")

    def _find_best(self) -> int | None:
        """Returns the step of the best existing checkpoint; None if none has been evaluated.

        It is the best step of the newest record, if that checkpoint still exists. If it was set aside, it is the best
        step of an older record, or a newer checkpoint with a greater validation accuracy.
        """
        steps, candidates = self.steps, {}
        for step in steps:
            try:
                record = self._record(step)
            except Damaged:
                continue
            best, validation = record["best_step"], record["run"].get("validation")
            if best in steps:
                if not candidates:
                    return best
                try:
                    validation = self._record(best)["run"]["validation"]
                    candidates[best] = validation.get("score", validation["accuracy"])
                except (Damaged, KeyError, TypeError):
                    return best
                break
            if validation:
                # The score is the metric that the run selects by. Old records have none: it was always the accuracy.
                candidates[step] = validation.get("score", validation["accuracy"])
        return max(sorted(candidates), key=candidates.get, default=None)  # the first of equals, as in training

    def _require_writable(self) -> None:
        if self._read_only:
            raise ValueError(f"{self._directory} was opened to be read only")

    @contextlib.contextmanager
    def _storage(self, verb: str) -> Iterator[None]:
        """Limits the time that the body may wait for the storage, and raises StorageError if the storage fails."""
        with self._workdir.time_limit():
            try:
                yield
            except Exception as error:
                self._raise_if_of_storage(error, verb)
                raise

    def _raise_if_of_storage(self, error: Exception, verb: str) -> None:
        if failures.is_of_storage(error):
            message = f"{self._directory}: a checkpoint can't be {verb}: {failures.one_line(error)}"
            raise StorageError(message) from error

    def find(self, which: str) -> int:
        """Returns the step that 'best', 'latest' or a number names; raises UserError if there is none."""
        step = {"best": self.best_step, "latest": self.latest_step}.get(which)
        if step is None and which.isdecimal():
            step = int(which)
        if step not in self.steps:
            have = ", ".join(map(str, reversed(self.steps))) or "none"
            raise UserError(f"{self._directory} has no checkpoint '{which}'; there are: {have}")
        return step

    def metadata(self, step: int) -> dict:
        """Returns the metadata stored beside the weights; raises Damaged, or UserError if the format is newer."""
        return self._record(step)["run"]

    def restore_weights(self, step: int, abstract: dict, *, is_ema: bool = False) -> dict:
        """Returns {'params', 'batch_stats'}, or their moving average, laid out like `abstract`; raises Damaged."""
        item = "ema" if is_ema else "weights"
        return self._restore(step, **{item: abstract})[item]

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Returns the state of a step, with the shapes and shardings of `like`; raises Damaged."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        restored = self._restore(step, **items_of(abstract))
        return TrainState(**restored["weights"], **restored["training"], ema=restored.get("ema"))

    def set_aside(self, step: int) -> epath.Path:
        """Moves a damaged checkpoint out of the way of later ones; returns its new path."""
        self._require_writable()
        self._wait()
        aside, attempt = self._workdir.damaged / str(step), 1
        while aside.exists():  # the same step was damaged before
            attempt += 1
            aside = aside.with_name(f"{step}-{attempt}")
        with self._workdir.time_limit():
            self._move(step, aside)
        # If it was the best, another one is now, and must be preserved instead.
        self._best.step = self._find_best()
        return aside

    def _record(self, step: int) -> dict:
        record = self._read(step, record=ocp.args.JsonRestore())["record"]
        require_sound_record(record, step)
        if record["format"] > FORMAT:
            raise UserError(
                f"the checkpoint of step {step} in {self._directory} has format {record['format']}, made by a newer "
                f"version; this one reads formats up to {FORMAT}"
            )
        return record

    def _restore(self, step: int, **abstract) -> dict:
        checksums = self._record(step)["checksums"]
        restored = self._read(step, **{item: ocp.args.StandardRestore(tree) for item, tree in abstract.items()})
        require_sound_items(restored, checksums, step)
        return restored

    def _read(self, step: int, **items) -> ocp.args.Composite:
        self._wait()
        with self._workdir.time_limit():
            try:
                return self._manager.restore(step, args=ocp.args.Composite(**items))
            except Exception as error:  # a damaged file can cause any exception in the libraries below
                if failures.is_of_permission(error) or failures.may_pass(error):
                    path = self._directory / str(step)
                    raise StorageError(f"{path} can't be read: {failures.one_line(error)}") from error
                # A lost process or too little memory is no reason to set a checkpoint aside.
                if isinstance(error, jax.errors.JaxRuntimeError | MemoryError):
                    raise
                raise Damaged(f"the checkpoint of step {step} can't be read ({failures.one_line(error)})") from error
