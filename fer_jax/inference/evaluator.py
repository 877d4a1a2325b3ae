"""Evaluates a model on a whole split, every example exactly once, on any number of devices and processes."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh

from fer_jax import parallel
from fer_jax.data.dataset import Split
from fer_jax.inference import metrics
from fer_jax.recipe.step import fetch
from fer_jax.system.signals import StopRequest

# The batches of splits up to this size in bytes are kept; FER-2013's validation images have 8 MB.
_MOST_KEPT = 2**26


def make_eval_step(predict: Callable, *, axis_name: str) -> Callable:
    """Returns `eval_step(variables, data, batch) -> {view: metric_sums}` over the global batch.

    The metric sums are those of `metrics.evaluation_sums`.

    predict: (variables, uint8 images [batch, height, width, channels]) -> {view: logits, float32 [batch, classes]}.
    data: the arrays of a whole split, into which the batch's index points, or {} if the batch contains its own.
    """

    def eval_step(variables, data, batch):
        batch = fetch(data, batch)
        masks = {key: batch[key] for key in ("mask", "is_copy") if key in batch}
        metric_sums = {
            view: metrics.evaluation_sums(logits, batch["label"], **masks)
            for view, logits in predict(variables, batch["image"]).items()
        }
        return lax.psum(metric_sums, axis_name)

    return eval_step


class Evaluator:
    """Evaluates splits with one compiled step.

    Args:
      predict: any function as in `make_eval_step`.
      mesh: the devices. mapper: 'shard_map' or 'pmap'.
      batch_size: over all devices; rounded up to a multiple of their number. The result is the same for every size.
      stop: checked before each batch.
      on_device: whether a split is put on every device once, so that batches contain only indices.
      prepare: applied to the variables once, before the batches.
    """

    def __init__(
        self,
        predict: Callable,
        mesh: Mesh,
        mapper: str,
        *,
        batch_size: int,
        stop: StopRequest,
        on_device: bool = False,
        prepare: Callable = lambda variables: variables,
    ):
        self._step = parallel.map_step(make_eval_step(predict, axis_name=parallel.AXIS_NAME), mesh, mapper)
        self._mesh, self._mapper, self._stop = mesh, mapper, stop
        # Each device gets an equal part; the padding is masked.
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._on_device = on_device
        self._resident: tuple[Split, dict] | None = None
        self._kept: tuple[Split, list[dict]] | None = None
        self._prepare = jax.jit(prepare)

    def __call__(self, variables, split: Split) -> dict:
        """Returns {view: metric sums} of a split, as numpy arrays; raises Stopped if a signal was received."""
        batches, data = self._batches_of(split), self._data_on_devices(split)
        variables = self._prepare(variables)
        total, pending = None, None
        # Signals are checked before each batch, since a split of a large dataset takes minutes.
        for number, batch in enumerate(batches):
            self._stop.check(number)
            metric_sums = self._step(variables, data, parallel.shard_batch(batch, self._mesh, self._mapper))
            # Fetched one batch late, so that the device never waits for the host.
            total = _add(total, pending)
            pending = metric_sums
        return _add(total, pending)

    def _batches_of(self, split: Split) -> Iterable[dict]:
        if self._kept is not None and self._kept[0] is split:
            return self._kept[1]
        from fer_jax.data import pipeline  # imports TensorFlow, which takes seconds

        batches = pipeline.eval_batches(
            split,
            batch_size=self._batch_size,
            indices_only=self._on_device,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        if split.images.nbytes > _MOST_KEPT:
            return batches
        # The batches are the same after each epoch, and setting up a pipeline takes as long as a GPU takes for them.
        self._kept = split, list(batches)
        return self._kept[1]

    def _data_on_devices(self, split: Split) -> dict:
        if not self._on_device:
            return {}
        # The split itself is kept with its arrays: the id() of a freed split may be reused by another one.
        if self._resident is None or self._resident[0] is not split:
            self._resident = split, parallel.replicate(split.arrays(), self._mesh)
        return self._resident[1]


def _add(total: dict | None, metric_sums: dict | None) -> dict | None:
    if metric_sums is None:
        return total
    # Losses are float64 and counts int64, so that sums are exact enough for a split of any size.
    sums = jax.tree.map(lambda x: np.asarray(x, np.float64 if x.dtype == np.float32 else np.int64), metric_sums)
    return sums if total is None else jax.tree.map(np.add, total, sums)
