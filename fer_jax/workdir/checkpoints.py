"""Orbax checkpoints: the newest two and the best of a run, each with checksums of what it holds.

A checkpoint of step N, checkpoints/N/, has three items: weights (params and batch_stats), training (optimizer
state and step) and record, a JSON: its format, checksums of all three, which step is the best so far, and what
evaluation and resumption need beside the weights (`run`).
"""

import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from fer_jax.errors import StorageError, UserError
from fer_jax.recipe.state import TrainState
from fer_jax.workdir import stall

FORMAT = 1


class Damaged(Exception):
    """A checkpoint isn't what was saved."""


class _KeepBest(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the checkpoint of one step, `step`."""

    step: int | None = None

    def should_preserve(self, checkpoints, *, context):
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run; use as a context manager, since saving goes on in the background.

    read_only: for a reader beside the run that writes them.
    """

    def __init__(self, directory: str | os.PathLike, *, read_only: bool = False):
        policies = ocp.checkpoint_managers
        directory = epath.Path(directory)
        self._directory = directory if directory.is_absolute() else directory.absolute()  # gs:// is absolute
        self._aside = self._directory.with_name("damaged")
        self._best = _KeepBest()
        try:
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    # The one before the newest is for when that turns out to be damaged.
                    preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(n=2), self._best]),
                    cleanup_tmp_directories=not read_only,  # what a killed process left
                ),
                item_handlers={
                    "weights": ocp.StandardCheckpointHandler(),
                    "training": ocp.StandardCheckpointHandler(),
                    "record": ocp.JsonCheckpointHandler(),
                },
            )
        except OSError as error:
            raise self._cannot_save(error) from error
        for step in self.steps:  # of those that can be read, the newest knows
            try:
                self._best.step = self._record(step)["best_step"]
                break
            except Damaged:
                continue

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None and jax.process_count() > 1:
            return  # closing waits for the other processes, one of which may be gone
        with stall.limit(self._directory):
            try:
                self._manager.close()
            except Exception as error:
                if kind is None:
                    raise self._cannot_save(error) from error

    @property
    def steps(self) -> list[int]:
        """Of all checkpoints, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    @property
    def has_damaged(self) -> bool:
        """Whether some were set aside, now or by an earlier process."""
        return self._aside.exists()

    @property
    def latest_step(self) -> int | None:
        """The newest checkpoint's step; None before the first."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the best validation accuracy; None before the first epoch's end."""
        return self._best.step

    def save(self, state: TrainState, run: Mapping[str, Any], *, improved: bool) -> None:
        """Saves `state`; the memory may be reused at once.

        run: what JSON can hold. improved: whether this is the best so far. Raises StorageError where this one, or the
        one before, which was written in the background, can't be written.
        """
        step = int(state.step)
        if improved:
            self._best.step = step
        weights = {"params": state.params, "batch_stats": state.batch_stats}
        training = {"step": state.step, "opt_state": state.opt_state}
        record = {
            "format": FORMAT,
            "step": step,
            "best_step": self._best.step,
            "checksums": {"weights": _checksum(weights), "training": _checksum(training)},
            "run": dict(run),
        }
        items = ocp.args.Composite(
            weights=ocp.args.StandardSave(weights),
            training=ocp.args.StandardSave(training),
            record=ocp.args.JsonSave(record | {"checksum": _checksum_of_json(record)}),
        )
        with stall.limit(self._directory):
            try:
                if step in self._manager.all_steps():
                    # Saved at a stop between an epoch's last step and the end of its evaluation; now it is whole.
                    self._manager.wait_until_finished()
                    self._manager.delete(step)
                self._manager.save(step, args=items)
            except Exception as error:
                raise self._cannot_save(error) from error

    def _cannot_save(self, error: Exception) -> StorageError:
        return StorageError(f"{self._directory}: a checkpoint can't be written: {_one_line(error)}")

    def find(self, which: str) -> int:
        """Gives the step that 'best', 'latest' or a number names; raises UserError where there is none."""
        step = {"best": self.best_step, "latest": self.latest_step}.get(which)
        if step is None and which.isdecimal():
            step = int(which)
        if step not in self.steps:
            have = ", ".join(map(str, reversed(self.steps))) or "none"
            raise UserError(f"{self._directory} has no checkpoint '{which}'; there are: {have}")
        return step

    def run(self, step: int) -> dict:
        """Gives what was stored beside the weights; raises Damaged, or UserError where the format is a newer one."""
        return self._record(step)["run"]

    def restore_weights(self, step: int, abstract: dict) -> dict:
        """Gives {'params', 'batch_stats'}, with the shapes and shardings of `abstract`; raises Damaged."""
        return self._restore(step, weights=abstract)["weights"]

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Gives the state of a step, with the shapes and shardings of `like`; raises Damaged."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        restored = self._restore(
            step,
            weights={"params": abstract.params, "batch_stats": abstract.batch_stats},
            training={"step": abstract.step, "opt_state": abstract.opt_state},
        )
        return TrainState(**restored["weights"], **restored["training"])

    def set_aside(self, step: int) -> epath.Path:
        """Moves a damaged checkpoint out of the way of the next ones; gives where it is then."""
        aside = self._aside / str(step)
        if jax.process_index() == 0:
            self._aside.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(aside)
        ocp.multihost.sync_global_processes(f"set_aside_{step}")
        self._manager.reload()
        return aside

    def _record(self, step: int) -> dict:
        record = self._read(step, record=ocp.args.JsonRestore())["record"]
        try:
            version, checksum = record["format"], record.pop("checksum")
        except (KeyError, TypeError):
            raise Damaged(f"the checkpoint of step {step} has a record without format or checksum") from None
        if checksum != _checksum_of_json(record) or record["step"] != step:
            raise Damaged(f"the checkpoint of step {step} has a record that is not what was saved")
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
    """CRC-32 of all leaves, which every device has whole; the same for any number of devices."""
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(jax.device_get(leaf.addressable_data(0))), checksum)
    return checksum


def _checksum_of_json(record: dict) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:600] or type(error).__name__
