"""One step of training, one of evaluation: pure functions of a state and a batch, written for one device.

A batch is {image: uint8 [batch, height, width, channels], label: int32 [batch], index: int [batch], mask: bool
[batch]}; examples whose mask is False count nowhere. Where a step is mapped over devices, `axis_name` names the
mapped axis, the batch is the device's part, and everything returned is the same on every device.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from fer_jax import augment, metrics
from fer_jax.state import TrainState


def scale_pixels(images):
    """uint8 in 0..255 -> float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    ranges: augment.Ranges,
    label_smoothing: float,
    seed: int,
    axis_name: str,
) -> Callable:
    """Gives `train_step(state, batch) -> (state, sums)`.

    The loss is the cross-entropy against a distribution over the classes. sums: loss (float32), correct and count
    (int32), summed over the global batch, and the step's learning_rate; float32 [].
    """

    def train_step(state: TrainState, batch):
        images = augment_batch(scale_pixels(batch["image"]), seed=seed, step=state.step, ranges=ranges, axis=axis_name)
        mask = batch["mask"]
        count = lax.psum(jnp.sum(mask, dtype=jnp.int32), axis_name)

        def loss_fn(params):
            logits, mutated = model.apply(
                {"params": params, "batch_stats": state.batch_stats}, images, train=True, mutable=["batch_stats"]
            )
            targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], logits.shape[-1]), label_smoothing)
            loss = jnp.sum(optax.softmax_cross_entropy(logits, targets) * mask)
            return loss / count, (loss, logits, mutated["batch_stats"])

        grads, (loss, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
        # Each device's loss is its share of the global mean, so the shares' gradients add up.
        grads = lax.psum(grads, axis_name)
        if model.axis_name is None:  # without synchronised statistics every device has its own
            batch_stats = lax.pmean(batch_stats, axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        correct = jnp.sum((jnp.argmax(logits, axis=-1) == batch["label"]) & mask, dtype=jnp.int32)
        sums = {"loss": lax.psum(loss, axis_name), "correct": lax.psum(correct, axis_name), "count": count}
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, sums | {"learning_rate": jnp.asarray(schedule(state.step), jnp.float32)}

    return train_step


def augment_batch(images, *, seed: int, step, ranges: augment.Ranges, axis: str):
    """Augments a device's images, each with a key of its own: (seed, step, position in the global batch)."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step)
    positions = lax.axis_index(axis) * len(images) + jnp.arange(len(images))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    return jax.vmap(augment.augment, (0, 0, None))(keys, images, ranges)


def make_eval_step(predict: Callable, *, axis_name: str) -> Callable:
    """Gives `eval_step(variables, batch) -> sums` (see `metrics.evaluation_sums`), over the global batch.

    predict: (variables, float32 images in [0, 1]) -> logits float32 [batch, classes].
    """

    def eval_step(variables, batch):
        logits = predict(variables, scale_pixels(batch["image"]))
        return lax.psum(metrics.evaluation_sums(logits, batch["label"], batch["mask"]), axis_name)

    return eval_step
