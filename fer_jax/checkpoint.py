"""Orbax checkpoints: the latest and the best of a run, and what is stored beside the weights.

A checkpoint of step N, checkpoints/N/, has three items: weights (params and batch_stats), training (optimizer
state and step) and run, a JSON of what evaluation and resumption need: config, class names, preprocessing, data
set, and the loop's own figures.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from fer_jax.errors import UserError
from fer_jax.state import TrainState


class Checkpoints:
    """The checkpoints of one run; use as a context manager, since saving goes on in the background."""

    def __init__(self, directory: str | pathlib.Path):
        policies = ocp.checkpoint_managers

        # Ranking by the step of the improvement keeps the best well-defined where accuracies tie.
        def rank(metrics: dict) -> int:
            return metrics["improved_at"]

        keep = [
            policies.LatestN(n=1),
            policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False),
        ]
        self._directory = pathlib.Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            # best_fn only has the metrics stored: what is kept is the policy's affair.
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep), best_fn=rank
            ),
            item_handlers={
                "weights": ocp.StandardCheckpointHandler(),
                "training": ocp.StandardCheckpointHandler(),
                "run": ocp.JsonCheckpointHandler(),
            },
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The newest checkpoint's step; None before the first."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the best validation accuracy; None before the first epoch's end."""
        self._manager.wait_until_finished()  # until then a step is listed, but its metrics aren't there
        improved = {step: self._improved_at(step) for step in self._manager.all_steps()}
        best = max(improved, key=improved.get, default=None)
        return best if best is not None and improved[best] >= 0 else None

    def _improved_at(self, step: int) -> int:
        return self._manager.metrics(step)["improved_at"]

    def save(self, state: TrainState, run: Mapping[str, Any], *, improved: bool) -> None:
        """Saves `state`; the memory may be reused at once.

        run: what JSON can hold. improved: whether this is the best so far.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            # Saved at a stop between an epoch's last step and the end of its evaluation; now the epoch is whole.
            self._manager.wait_until_finished()
            self._manager.delete(step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardSave({"params": state.params, "batch_stats": state.batch_stats}),
                training=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
                run=ocp.args.JsonSave(dict(run)),
            ),
            metrics={"improved_at": step if improved else -1},
        )

    def find(self, which: str) -> int:
        """Gives the step that 'best', 'latest' or a number names; raises UserError where there is none."""
        if which == "best":
            step = self.best_step
        elif which == "latest":
            step = self.latest_step
        else:
            step = int(which) if which.isdecimal() and int(which) in self._manager.all_steps() else None
        if step is None:
            have = ", ".join(map(str, sorted(self._manager.all_steps()))) or "none"
            raise UserError(f"{self._directory} has no checkpoint '{which}'; there are: {have}")
        return step

    def run(self, step: int) -> dict:
        """Gives what was stored beside the weights."""
        return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]

    def restore_weights(self, step: int, abstract: dict) -> dict:
        """Gives {'params', 'batch_stats'}, with the shapes and shardings of `abstract`."""
        return self._manager.restore(step, args=ocp.args.Composite(weights=ocp.args.StandardRestore(abstract)))[
            "weights"
        ]

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Gives the state of a step, with the shapes and shardings of `like`."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardRestore({"params": abstract.params, "batch_stats": abstract.batch_stats}),
                training=ocp.args.StandardRestore({"step": abstract.step, "opt_state": abstract.opt_state}),
            ),
        )
        return TrainState(**restored["weights"], **restored["training"])
