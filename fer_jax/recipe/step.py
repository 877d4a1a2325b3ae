"""One training step: a pure function of a state and a batch, written for one device.

A batch is {image: uint8 [batch, height, width, channels], label: int32 [batch], index: int32 [batch]} and may have
target: float32 [batch, classes], a distribution in place of the label. `data` holds these arrays for a whole split,
from which the batch's index selects, or is {} if the batch has its own. When the step is mapped over devices,
`axis_name` names the mapped axis, the batch is the device's part of the global batch, and all results are the same on
every device.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from fer_jax.recipe.images import AugmentConfig, alternating_flips, augment_batch, scale_pixels
from fer_jax.recipe.keys import Stream, example_keys
from fer_jax.recipe.loss import cross_entropy, make_targets, weigh
from fer_jax.recipe.mixing import NO_MIXING, MixConfig, mix_batch
from fer_jax.recipe.optimizer import skip_update
from fer_jax.recipe.state import TrainState, move_average


def fetch(data: dict, batch: dict) -> dict:
    """Returns the batch with the arrays that its index selects from `data`."""
    return {key: jnp.take(array, batch["index"], axis=0, mode="clip") for key, array in data.items()} | batch


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    preprocess: Callable = scale_pixels,
    augment_config: AugmentConfig,
    mix_config: MixConfig = NO_MIXING,
    steps_per_epoch: int = 1,
    num_epochs: int = 1,
    label_smoothing: float,
    class_weights=None,
    ema_decay: float | None = None,
    seed: int,
    axis_name: str,
    grad_accum_steps: int = 1,
    reduce_dtype: str = "float32",
    skip_nonfinite: bool = False,
) -> Callable:
    """Returns `train_step(state, data, batch) -> (state, metric_sums)`.

    Args:
      optimizer: an optimizer whose learning rate is that of `schedule`.
      preprocess: uint8 images -> float32 images, before they are augmented.
      steps_per_epoch, num_epochs: used for what depends on the epoch: alternating flips and the end of mixing.
      class_weights: float32 [classes], or None; see `recipe.loss`.
      ema_decay: decay of the state's moving average, or None if it has none.
      grad_accum_steps: number of microbatches that each device processes one after the other; each has its own batch
        statistics, as if it were on a device of its own.
      reduce_dtype: dtype of the gradient all-reduce.
      skip_nonfinite: whether a step with a non-finite loss or gradient changes nothing but the step number and counts
        no examples. If set, metric_sums also has skipped, int32 0 or 1.

    metric_sums are loss (float32), correct and count (int32), summed over the global batch, and the step's
    learning_rate; each is a scalar. The loss is against the smoothed, weighted or mixed targets, whereas correct counts
    the predictions that match the labels.
    """

    def loss_fn(params, batch_stats, examples, num_examples):
        labels = examples["label"]
        logits, mutated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            examples["image"],
            train=True,
            keys=examples.get("key"),
            mutable=["batch_stats"],
        )
        targets, weights = examples.get("target"), None
        if class_weights is not None:
            # Weights are applied before smoothing, so that a mixed image is weighted by the classes that are in it.
            one_hot = jax.nn.one_hot(labels, logits.shape[-1])
            targets, weights = weigh(one_hot if targets is None else targets, class_weights)
        targets = make_targets(labels, logits.shape[-1], label_smoothing=label_smoothing, targets=targets)
        losses = cross_entropy(logits, targets)
        losses = losses if weights is None else losses * weights
        # The condition always holds. Without the select XLA:CPU combines the gradient's products and sums differently,
        # and a run with label smoothing would differ from version 0.1 in the last bits.
        loss = jnp.sum(jnp.where(labels >= 0, losses, 0.0))
        correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.int32)
        # The loss of a device or microbatch is its share of the global mean, so the shares' gradients add up.
        return loss / num_examples, (loss, correct, mutated["batch_stats"])

    def make_examples(batch, step):
        """Returns the preprocessed batch of a device: image, label and, if it differs from the label, target."""
        epoch = step // steps_per_epoch
        flips = alternating_flips(batch["index"], epoch, seed=seed) if augment_config.alternating_flip else None
        images = augment_batch(
            preprocess(batch["image"]), seed=seed, step=step, config=augment_config, axis_name=axis_name, flips=flips
        )
        examples = {"image": images} | {key: batch[key] for key in ("label", "target") if key in batch}
        if mix_config.is_on:
            # Targets are mixed before smoothing, which is linear and is applied to all of them later.
            targets = batch.get("target", jax.nn.one_hot(batch["label"], model.num_classes))
            examples["image"], examples["target"] = mix_batch(
                images,
                targets,
                seed=seed,
                step=step,
                last_step=(num_epochs - mix_config.off_epochs) * steps_per_epoch,
                config=mix_config,
                axis_name=axis_name,
            )
        # A model without random draws gets no keys, so that keys don't change its program.
        if model.is_random:
            examples["key"] = example_keys(seed, Stream.NETWORK, step, len(images), axis_name)
        return examples

    def train_step(state: TrainState, data, batch):
        examples = make_examples(fetch(data, batch), state.step)
        # The size of the global batch, so that the mean is the same on any number of devices.
        num_examples = lax.psum(jnp.int32(len(examples["label"])), axis_name)

        def gradient(examples):
            return jax.grad(loss_fn, has_aux=True)(state.params, state.batch_stats, examples, num_examples)

        grads, (loss, correct, batch_stats) = _sum_over_microbatches(gradient, examples, grad_accum_steps)
        # Running statistics are averaged, whereas gradients are summed.
        batch_stats = jax.tree.map(lambda total: total / grad_accum_steps, batch_stats)
        grads = _all_reduce(grads, axis_name, reduce_dtype)
        if model.axis_name is None:  # without synchronised statistics every device has its own
            batch_stats = lax.pmean(batch_stats, axis_name)
        # From here on all devices compute the same values.
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if ema_decay is not None:
            ema = move_average(state.ema, new_state.variables, decay=ema_decay, step=state.step)
            new_state = new_state.replace(ema=ema)
        metric_sums = {"loss": lax.psum(loss, axis_name), "correct": lax.psum(correct, axis_name)}
        metric_sums["count"] = num_examples
        if skip_nonfinite:
            is_finite = jnp.isfinite(metric_sums["loss"]) & jnp.isfinite(optax.tree.norm(grads))
            new_state, metric_sums = _unless_nonfinite(is_finite, new_state, state, metric_sums)
        return new_state, metric_sums | {"learning_rate": jnp.asarray(schedule(state.step), jnp.float32)}

    return train_step


def repeat(train_step: Callable) -> Callable:
    """Returns `(state, data, batches) -> (state, metric_sums)`, one step for each stacked batch, [steps, ...]."""

    def repeated(state: TrainState, data, batches):
        # A loop of one step would still be a loop to the compiler, which optimises less inside a loop.
        if len(batches["index"]) == 1:
            state, metric_sums = train_step(state, data, jax.tree.map(lambda x: x[0], batches))
            return state, jax.tree.map(lambda x: x[None], metric_sums)
        return lax.scan(lambda state, batch: train_step(state, data, batch), state, batches)

    return repeated


def _unless_nonfinite(is_finite, new_state: TrainState, state: TrainState, metric_sums: dict):
    """Returns the new state and its metric sums if `is_finite`, otherwise the old state and zeros."""

    def choose(new, old):
        return jax.tree.map(functools.partial(jnp.where, is_finite), new, old)

    # A skipped step counts no examples, so the epoch's mean covers only the steps that were taken.
    metric_sums = choose(metric_sums, jax.tree.map(jnp.zeros_like, metric_sums))
    metric_sums["skipped"] = jnp.int32(~is_finite)
    chosen = TrainState(
        step=new_state.step,  # a skipped step uses up its batch too
        params=choose(new_state.params, state.params),
        batch_stats=choose(new_state.batch_stats, state.batch_stats),
        opt_state=skip_update(is_finite, new_state.opt_state, state.opt_state),
        ema=choose(new_state.ema, state.ema),
    )
    return chosen, metric_sums


def _sum_over_microbatches(function: Callable, examples: dict, num_microbatches: int):
    """Returns the sum of `function`'s results over contiguous microbatches of the examples, one at a time."""
    if num_microbatches == 1:
        return function(examples)
    parts = jax.tree.map(lambda x: x.reshape(num_microbatches, -1, *x.shape[1:]), examples)
    # A scan needs an initial total, which has the shapes of one microbatch's result.
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None), zeros, parts)
    return total


def _all_reduce(tree, axis_name: str, dtype: str):
    """Returns the sum over devices, which is communicated in `dtype`."""
    if lax.axis_size(axis_name) == 1:  # XLA:CPU would copy every array
        return tree
    summed = lax.psum(jax.tree.map(lambda x: x.astype(dtype), tree), axis_name)
    return jax.tree.map(lambda total, x: total.astype(x.dtype), summed, tree)
