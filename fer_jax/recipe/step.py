"""One step of training, one of evaluation: pure functions of a state and a batch, written for one device.

A batch is {image: uint8 [batch, height, width, channels], label: int32 [batch], index: int32 [batch], mask: bool
[batch]}; examples whose mask is False count nowhere. `data` is {image, label} of a whole split, into which the batch's
index points, or {} where the batch brings its own. Where a step is mapped over devices, `axis_name` names the
mapped axis, the batch is the device's part, and everything returned is the same on every device.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from fer_jax.inference import metrics
from fer_jax.recipe import images as augment
from fer_jax.recipe.state import TrainState


def scale_pixels(images):
    """uint8 in 0..255 -> float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def fetch(data: dict, batch: dict) -> dict:
    """Gives the batch with its images and labels."""
    return {key: jnp.take(array, batch["index"], axis=0, mode="clip") for key, array in data.items()} | batch


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    ranges: augment.Ranges,
    label_smoothing: float,
    seed: int,
    axis_name: str,
    accumulate_steps: int = 1,
    reduce_dtype: str = "float32",
    skip_nonfinite: bool = False,
) -> Callable:
    """Gives `train_step(state, data, batch) -> (state, sums)`.

    The loss is the cross-entropy against a distribution over the classes. sums: loss (float32), correct and count
    (int32), summed over the global batch, and the step's learning_rate; float32 [].

    accumulate_steps: a device's part of the batch goes through the network in so many parts, one after the other, each
    with batch statistics of its own as if it were another device's. reduce_dtype: what gradients travel between devices
    in. skip_nonfinite: where loss or gradient isn't finite, the step changes nothing but its number, counts no example,
    and sums also has skipped, int32 0 or 1.
    """

    def train_step(state: TrainState, data, batch):
        batch = fetch(data, batch)
        images = augment_batch(scale_pixels(batch["image"]), seed=seed, step=state.step, ranges=ranges, axis=axis_name)
        count = lax.psum(jnp.sum(batch["mask"], dtype=jnp.int32), axis_name)

        def loss_fn(params, images, labels, mask):
            logits, mutated = model.apply(
                {"params": params, "batch_stats": state.batch_stats}, images, train=True, mutable=["batch_stats"]
            )
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
            loss = jnp.sum(optax.softmax_cross_entropy(logits, targets) * mask)
            correct = jnp.sum((jnp.argmax(logits, axis=-1) == labels) & mask, dtype=jnp.int32)
            return loss / count, (loss, correct, mutated["batch_stats"])

        gradient = functools.partial(jax.grad(loss_fn, has_aux=True), state.params)
        examples = (images, batch["label"], batch["mask"])
        # A device's loss, and a part's, is its share of the global mean, so the shares' gradients add up.
        grads, (loss, correct, batch_stats) = _sum_over_parts(gradient, examples, accumulate_steps)
        batch_stats = jax.tree.map(lambda total: total / accumulate_steps, batch_stats)
        grads = _psum(grads, axis_name, reduce_dtype)
        if model.axis_name is None:  # without synchronised statistics every device has its own
            batch_stats = lax.pmean(batch_stats, axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        sums = {"loss": lax.psum(loss, axis_name), "correct": lax.psum(correct, axis_name), "count": count}
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if skip_nonfinite:
            is_finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(optax.tree.norm(grads))
            new_state = _where(is_finite, new_state, state.replace(step=state.step + 1))
            sums = _where(is_finite, sums, jax.tree.map(jnp.zeros_like, sums))
            sums["skipped"] = jnp.int32(~is_finite)
        return new_state, sums | {"learning_rate": jnp.asarray(schedule(state.step), jnp.float32)}

    return train_step


def _where(condition, tree, otherwise):
    return jax.tree.map(functools.partial(jnp.where, condition), tree, otherwise)


def _sum_over_parts(function: Callable, examples: tuple, num_parts: int):
    """Sums what `function` gives for each of `num_parts` contiguous parts of the examples, one part at a time."""
    if num_parts == 1:
        return function(*examples)
    parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), examples)
    shapes = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(*part)), None), zeros, parts)
    return total


def _psum(tree, axis_name: str, dtype: str):
    """Sums over devices, travelling as `dtype`."""
    if lax.axis_size(axis_name) == 1:  # XLA:CPU would copy them all
        return tree
    summed = lax.psum(jax.tree.map(lambda x: x.astype(dtype), tree), axis_name)
    return jax.tree.map(lambda ours, x: ours.astype(x.dtype), summed, tree)


def repeat(train_step: Callable) -> Callable:
    """Gives `(state, data, batches) -> (state, sums)`, a step for each of the stacked batches; sums are stacked too."""

    def repeated(state: TrainState, data, batches):
        # A loop of one step would still be a loop to the compiler, which optimises less inside of one.
        if len(batches["mask"]) == 1:
            state, sums = train_step(state, data, jax.tree.map(lambda x: x[0], batches))
            return state, jax.tree.map(lambda x: x[None], sums)
        return lax.scan(lambda state, batch: train_step(state, data, batch), state, batches)

    return repeated


def augment_batch(images, *, seed: int, step, ranges: augment.Ranges, axis: str):
    """Augments a device's images, each with a key of its own: (seed, step, position in the global batch)."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step)
    positions = lax.axis_index(axis) * len(images) + jnp.arange(len(images))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    return jax.vmap(augment.augment, (0, 0, None))(keys, images, ranges)


def make_eval_step(predict: Callable, *, axis_name: str) -> Callable:
    """Gives `eval_step(variables, data, batch) -> sums` (see `metrics.evaluation_sums`), over the global batch.

    predict: (variables, float32 images in [0, 1]) -> logits float32 [batch, classes].
    """

    def eval_step(variables, data, batch):
        batch = fetch(data, batch)
        logits = predict(variables, scale_pixels(batch["image"]))
        return lax.psum(metrics.evaluation_sums(logits, batch["label"], batch["mask"]), axis_name)

    return eval_step
