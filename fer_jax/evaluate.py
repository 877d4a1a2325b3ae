"""Evaluates one split exactly, and writes the report of a run's checkpoint."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_dict

from fer_jax import config as config_lib
from fer_jax import parallel
from fer_jax.data import load as source
from fer_jax.data.dataset import CLASS_NAMES, IMAGE_SHAPE, Dataset, Split
from fer_jax.errors import UserError
from fer_jax.inference import metrics
from fer_jax.models import resnet
from fer_jax.recipe import step as steps
from fer_jax.system.signals import StopRequest
from fer_jax.system.terminal import Terminal
from fer_jax.workdir import report, stall
from fer_jax.workdir.checkpoints import Checkpoints, Damaged

# What is done to an image before the network; stored in every checkpoint and compared when one is restored.
PREPROCESSING = {"image_shape": list(IMAGE_SHAPE), "pixels": "uint8 / 255"}


class Stopped(Exception):
    """A request to stop came while evaluating."""


class Evaluator:
    """Evaluates splits with one compiled step.

    predict: (variables, float32 images in [0, 1]) -> logits; any function will do. batch_size: rounded up to a
    multiple of the devices; the result is the same for all. on_device: whether a split is put on every device, once,
    rather than its batches. prepare: what is done to the variables, once, before the batches.
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
        self._step = parallel.map_step(steps.make_eval_step(predict, axis_name=parallel.AXIS), mesh, mapper)
        self._mesh, self._mapper, self._stop = mesh, mapper, stop
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._on_device, self._data = on_device, {}
        self._prepare = jax.jit(prepare)

    def __call__(self, variables, split: Split) -> dict:
        """Gives the sums (`metrics.evaluation_sums`) over a split, on the host; raises Stopped if asked to stop."""
        from fer_jax.data import pipeline  # imports TensorFlow, which takes seconds

        host, num_hosts = jax.process_index(), jax.process_count()
        total, pending = None, None
        if self._on_device and id(split) not in self._data:
            self._data[id(split)] = parallel.replicate(split.arrays(), self._mesh)
        data = self._data.get(id(split), {})
        batches = pipeline.eval_batches(
            split, batch_size=self._batch_size, indices_only=self._on_device, host=host, num_hosts=num_hosts
        )
        variables = self._prepare(variables)
        for number, batch in enumerate(batches):
            if self._stop.is_agreed(number):
                raise Stopped
            sums = self._step(variables, data, parallel.place(batch, self._mesh, self._mapper))
            total = _add(total, pending)  # one batch late, so that the device never waits
            pending = sums
        return _add(total, pending)


def _add(total: dict | None, sums: dict | None) -> dict | None:
    if sums is None:
        return total
    sums = {key: np.asarray(value, np.float64 if key == "loss" else np.int64) for key, value in sums.items()}
    return sums if total is None else {key: total[key] + sums[key] for key in sums}


def make_network(model_config: config_dict.ConfigDict) -> resnet.ResNet:
    """Gives the network of a `config.model` for FER-2013's classes and this process's devices."""
    return resnet.make(
        model_config, num_classes=len(CLASS_NAMES), axis_name=parallel.AXIS, backend=jax.default_backend()
    )


def predictor(model: resnet.ResNet) -> Callable:
    """Gives the network's `predict(variables, images) -> logits`, with running batch statistics."""
    return lambda variables, images: model.apply(variables, images, train=False)


def preparer(model: resnet.ResNet) -> Callable:
    """Gives what to do to the variables, once, before many calls of `predictor`'s function: the logits are the same."""
    return functools.partial(resnet.cast_kernels, dtype=model.dtype)


def make_evaluator(config: config_dict.ConfigDict, model: resnet.ResNet, mesh: Mesh, stop: StopRequest) -> Evaluator:
    """Gives the evaluator of a run's network."""
    return Evaluator(
        predictor(model),
        mesh,
        config.parallel.mapper,
        batch_size=config.batch_size,
        on_device=config.dataset.loader == "device",
        prepare=preparer(model),
        stop=stop,
    )


def run(
    config: config_dict.ConfigDict | None, workdir: epath.Path, *, split: str, checkpoint: str, stop: StopRequest
) -> int:
    """Evaluates a checkpoint ('best', 'latest' or a step) of the run in `workdir` on a split and writes its report.

    Gives the exit status: 0, or 128 + signal if stopped.

    config: None for the run's own; else it may differ from that in `dataset` only, to evaluate on other data.
    Raises UserError where it differs otherwise, or where what was logged with a checkpoint can't be reproduced.
    """
    say = Terminal(is_primary=jax.process_index() == 0).say
    own = config_lib.load(workdir / "config.json")
    config_lib.check(own)
    if config is not None:
        config_lib.refuse_differences(
            config,
            workdir,
            allowed="dataset.",
            advice="Leave --config out to use the run's own; only config.dataset.* may differ",
        )
    wanted = (config or own).dataset
    dataset = source.load(wanted.source, wanted.path, wanted.cache_dir, own.seed)
    say(f"Data set: {dataset.describe()}")
    dataset.split(split)
    with stop:
        try:
            report_checkpoint(own, workdir, dataset, splits=[split], checkpoint=checkpoint, stop=stop, say=say)
        except Stopped:
            return stop.exit_status
    return 0


def report_checkpoint(
    config: config_dict.ConfigDict,
    workdir: epath.Path,
    dataset: Dataset,
    *,
    splits: list[str],
    checkpoint: str,
    stop: StopRequest,
    say: Callable[[str], None],
) -> None:
    """Restores a checkpoint, evaluates each of `splits` and writes and prints their reports.

    Where the checkpoint's validation accuracy was logged, on this data, it is computed again and must be the same.
    """
    mesh = parallel.make_mesh()
    model = make_network(config.model)
    evaluator = make_evaluator(config, model, mesh, stop)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.find(checkpoint)
        try:
            stored = checkpoints.run(step)
            refuse_other_network(config, step, stored)
            variables = checkpoints.restore_weights(step, _abstract_variables(model, mesh))
        except Damaged as error:
            others = ", ".join(str(other) for other in checkpoints.steps if other != step) or "none"
            raise UserError(f"{workdir}: {error}; other checkpoints: {others}") from None

    sums = {}
    logged = stored["validation"]
    if logged and stored["dataset_fingerprint"] == dataset.fingerprint:
        sums["validation"] = evaluator(variables, dataset.split("validation"))
        again = metrics.accuracy(sums["validation"])
        if again != logged["accuracy"]:
            raise UserError(
                f"the checkpoint of step {step} had a validation accuracy of {logged['accuracy']:.6f} in training and "
                f"has {again:.6f} now: it is damaged, or this device computes otherwise than the one it was trained on"
            )
        say(f"Restored step {step}: its validation accuracy, {again:.4%}, is the one logged in training.")
    else:
        say(f"Restored step {step}.")
    for split in splits:
        if split not in sums:
            sums[split] = evaluator(variables, dataset.split(split))
        evaluation = {
            "split": split,
            **metrics.summarize(sums[split], CLASS_NAMES),
            "class_names": list(CLASS_NAMES),
            "checkpoint_step": step,
            "selected_on": "validation accuracy" if checkpoint == "best" else f"not selected ({checkpoint})",
            "dataset": dataset.name,
            "dataset_fingerprint": dataset.fingerprint,
        }
        if jax.process_index() == 0:
            with stall.limit(workdir / "report"):
                report.write_evaluation(evaluation, workdir / "report")
        say("\n" + report.table(evaluation))


def refuse_other_network(config: config_dict.ConfigDict, step: int, stored: dict) -> None:
    """Raises UserError, saying what differs, where a checkpoint isn't one of this config's network or this code."""
    pairs = [("class_names", stored["class_names"], list(CLASS_NAMES))]
    pairs += [("preprocessing", stored["preprocessing"], PREPROCESSING)]
    for key, (ours, theirs) in config_lib.differences(config.model, stored["config"]["model"]).items():
        pairs.append((f"config.model.{key}", theirs, ours))
    different = [f"{key} {theirs!r} there and {ours!r} here" for key, theirs, ours in pairs if theirs != ours]
    if different:
        raise UserError(f"the checkpoint of step {step} is of another network: {', '.join(different)}")


def _abstract_variables(model: resnet.ResNet, mesh: Mesh) -> dict:
    sharding = NamedSharding(mesh, PartitionSpec())
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *IMAGE_SHAPE)), train=False))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), variables)
