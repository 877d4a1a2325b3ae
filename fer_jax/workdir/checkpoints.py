"""Orbax checkpoints: the newest two and the best of a run, each with checksums of what it holds.

A checkpoint of step N, checkpoints/N/, has three items: weights (params and batch_stats), training (optimizer state and
step) and record, a JSON: its format, checksums of all three, which step is the best so far, and the metadata that
evaluation and resumption need beside the weights (under the key `run`).
"""

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from fer_jax.errors import StorageError, UserError
from fer_jax.recipe.state import TrainState
from fer_jax.workdir.paths import Workdir

FORMAT = 1

# How TensorStore, which raises ValueError, and its cloud clients say that the storage is to blame.
_OF_STORAGE = re.compile(
    r"\bOS error\b|\b(UNAVAILABLE|RESOURCE_EXHAUSTED|PERMISSION_DENIED|DEADLINE_EXCEEDED|UNAUTHENTICATED)\b"
    r"|No space left|File too large|Read-only file system|Input/output error|Disk quota"
)


class Damaged(Exception):
    """A checkpoint isn't what was saved."""


class _KeepBest(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the checkpoint of one step, `step`."""

    step: int | None = None

    def should_preserve(self, checkpoints, *, context):
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run; use as a context manager, since saving goes on in the background.

    read_only: for a reader beside the run that writes them, or of a folder that can't be written.
    """

    def __init__(self, workdir: Workdir, *, read_only: bool = False):
        policies = ocp.checkpoint_managers
        self._workdir = workdir
        path = workdir.checkpoints
        self._directory = path if path.is_absolute() else path.absolute()  # gs:// is absolute
        self._best = _KeepBest()
        with workdir.time_limit():
            try:
                self._manager = ocp.CheckpointManager(
                    self._directory,
                    options=ocp.CheckpointManagerOptions(
                        # The one before the newest is for when that turns out to be damaged.
                        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(n=2), self._best]),
                        create=not read_only,
                        cleanup_tmp_directories=not read_only,  # what a killed process left
                    ),
                    item_handlers={
                        "weights": ocp.StandardCheckpointHandler(),
                        "training": ocp.StandardCheckpointHandler(),
                        "record": ocp.JsonCheckpointHandler(),
                    },
                )
                if not read_only:
                    self._finish_replacements()
            except OSError as error:
                raise self._cannot_save(error) from error
            self._best.step = self._find_best()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None and jax.process_count() > 1:
            return  # closing waits for the other processes, one of which may be gone
        with self._workdir.time_limit():
            try:
                self._manager.close()
            except Exception as error:
                if kind is None:
                    if _is_of_storage(error):
                        raise self._cannot_save(error) from error
                    raise

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    @property
    def has_damaged(self) -> bool:
        """Whether some were set aside, now or by an earlier process."""
        return self._workdir.damaged.exists()

    @property
    def latest_step(self) -> int | None:
        """The newest checkpoint's step; None before the first."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the best validation accuracy; None before the first epoch's end."""
        return self._best.step

    def save(self, state: TrainState, metadata: Mapping[str, Any], *, is_best: bool) -> None:
        """Starts an asynchronous save of `state`; the arrays are copied first, so the caller may donate them at once.

        metadata: JSON-serialisable values, stored with the weights. is_best: whether this is the best checkpoint so
        far. Raises StorageError if this save, or the previous one in the background, failed.
        """
        # Waits for the last step to be computed.
        step = int(state.step)
        if is_best:
            self._best.step = step
        weights = {"params": state.params, "batch_stats": state.batch_stats}
        training = {"step": state.step, "opt_state": state.opt_state}
        record = {
            "format": FORMAT,
            "step": step,
            "best_step": self._best.step,
            # Of the arrays in memory, not of the files: Orbax's own checks miss some damage.
            "checksums": {"weights": _checksum(weights), "training": _checksum(training)},
            "run": dict(metadata),
        }
        items = ocp.args.Composite(
            weights=ocp.args.StandardSave(weights),
            training=ocp.args.StandardSave(training),
            record=ocp.args.JsonSave(record | {"checksum": _checksum_of_json(record)}),
        )
        with self._workdir.time_limit():
            try:
                # Saved at a stop between an epoch's last step and the end of its evaluation; now it is whole.
                is_replacement = step in self._manager.all_steps()
                if is_replacement:
                    self._move(step, self._workdir.replaced / str(step))
                self._manager.save(step, args=items)
                if is_replacement:
                    self._manager.wait_until_finished()
                    self._finish_replacements()
            except Exception as error:
                if _is_of_storage(error):
                    raise self._cannot_save(error) from error
                raise

    def _move(self, step: int, target: epath.Path) -> None:
        """Moves the checkpoint of a step to a folder of its own, and lets the manager forget it."""
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(target)
        ocp.multihost.sync_global_processes(f"move_{step}_{target.parent.name}")
        self._manager.reload()

    def _finish_replacements(self) -> None:
        """Deletes a replaced checkpoint once its successor is committed; puts it back where there is none."""
        if jax.process_index() == 0 and self._workdir.replaced.exists():
            committed = self._manager.all_steps()
            for old in self._workdir.replaced.iterdir():
                # Not whether the folder exists: in a bucket it does before the successor is whole.
                if int(old.name) in committed:
                    old.rmtree()
                else:
                    old.rename(self._directory / old.name)
            self._workdir.replaced.rmdir()
        ocp.multihost.sync_global_processes("finish_replacements")
        self._manager.reload()

    def _find_best(self) -> int | None:
        """Returns the best step as the newest record knows it, or of those that are left where that one is gone."""
        steps, accuracies = self.steps, {}
        for step in steps:
            try:
                record = self._record(step)
            except Damaged:
                continue
            if record["best_step"] is None or record["best_step"] in steps:
                return record["best_step"]
            validation = record["run"].get("validation")
            if validation:
                accuracies[step] = validation["accuracy"]
        # Of equal ones the first, as in training.
        return max(sorted(accuracies), key=accuracies.get, default=None)

    def _cannot_save(self, error: Exception) -> StorageError:
        return StorageError(f"{self._directory}: a checkpoint can't be written: {_one_line(error)}")

    def find(self, which: str) -> int:
        """Returns the step that 'best', 'latest' or a number names; raises UserError where there is none."""
        step = {"best": self.best_step, "latest": self.latest_step}.get(which)
        if step is None and which.isdecimal():
            step = int(which)
        if step not in self.steps:
            have = ", ".join(map(str, reversed(self.steps))) or "none"
            raise UserError(f"{self._directory} has no checkpoint '{which}'; there are: {have}")
        return step

    def metadata(self, step: int) -> dict:
        """Returns what is stored beside the weights; raises Damaged, or UserError where the format is a newer one."""
        return self._record(step)["run"]

    def restore_weights(self, step: int, abstract: dict) -> dict:
        """Returns {'params', 'batch_stats'}, with the shapes and shardings of `abstract`; raises Damaged."""
        return self._restore(step, weights=abstract)["weights"]

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Returns the state of a step, with the shapes and shardings of `like`; raises Damaged."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        restored = self._restore(
            step,
            weights={"params": abstract.params, "batch_stats": abstract.batch_stats},
            training={"step": abstract.step, "opt_state": abstract.opt_state},
        )
        return TrainState(**restored["weights"], **restored["training"])

    def set_aside(self, step: int) -> epath.Path:
        """Moves a damaged checkpoint out of the way of the next ones; returns where it is then."""
        aside = self._workdir.damaged / str(step)
        self._move(step, aside)
        # It may have been the best; what stays must not be deleted for its sake.
        self._best.step = self._find_best()
        return aside

    def _record(self, step: int) -> dict:
        record = self._read(step, record=ocp.args.JsonRestore())["record"]
        try:
            version, checksum = record["format"], record.pop("checksum")
        except (KeyError, TypeError):
            raise Damaged(f"the checkpoint of step {step} has a record without format or checksum") from None
        if checksum != _checksum_of_json(record) or record["step"] != step:
            raise Damaged(f"the checkpoint of step {step} has a record that is not what was saved")
        # A newer version may mean something else by the same keys.
        if version > FORMAT:
            raise UserError(
                f"the checkpoint of step {step} in {self._directory} has format {version}, made by a newer version; "
                f"this one reads formats up to {FORMAT}"
            )
        return record

    def _restore(self, step: int, **abstract) -> dict:
        checksums = self._record(step)["checksums"]
        restored = self._read(step, **{item: ocp.args.StandardRestore(tree) for item, tree in abstract.items()})
        for item, tree in restored.items():
            if _checksum(tree) != checksums[item]:
                raise Damaged(f"the checkpoint of step {step} has {item} that are not what was saved")
        return restored

    def _read(self, step: int, **items) -> ocp.args.Composite:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # a damaged file can make anything of the libraries below
            if isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error):
                raise StorageError(f"{self._directory / str(step)} can't be read: {_one_line(error)}") from error
            raise Damaged(f"the checkpoint of step {step} can't be read ({_one_line(error)})") from error


def _checksum(tree) -> int:
    """Returns the CRC-32 of all leaves, which every device has whole; the same for any number of devices."""
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        # Every device has the whole array, so the first one's copy is enough.
        checksum = zlib.crc32(np.ascontiguousarray(jax.device_get(leaf.addressable_data(0))), checksum)
    return checksum


def _checksum_of_json(record: dict) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _is_of_storage(error: Exception) -> bool:
    """Returns whether the storage failed rather than this program."""
    if isinstance(error, TypeError | LookupError | AttributeError):
        return False
    return isinstance(error, OSError | StorageError) or _OF_STORAGE.search(str(error)) is not None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:600] or type(error).__name__
