"""ResNet v1.5 in plain Flax, in the style of its documentation: only stock layers, jit and optax's Adam."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fer_jax.data.dataset import CLASS_NAMES
from scripts.benchmark.peers import ARCHITECTURES, jax_peak_memory, keep_programs, make_batch

PACKAGES = ("jax", "jaxlib", "flax", "optax")
peak_memory = jax_peak_memory
wait = jax.block_until_ready


class ResNet(nn.Module):
    """uint8 [batch, height, width, 1] -> logits float32 [batch, 7]."""

    depth: int
    stages: int
    width: int
    stem_kernel: int
    stem_stride: int
    stem_pool: bool
    dtype: str
    zero_init: bool = False
    squeeze_excitation: bool = False
    stochastic_depth: float = 0.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images, train: bool):
        def conv_norm(x, features: int, kernel: int, stride: int = 1, scale_init=nn.initializers.ones):
            initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
            size, strides, padding = (kernel, kernel), (stride, stride), kernel // 2
            conv = nn.Conv(features, size, strides, padding, use_bias=False, dtype=self.dtype, kernel_init=initializer)
            return nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype, scale_init=scale_init)(conv(x))

        stage_sizes, bottleneck = ARCHITECTURES[self.depth]
        stage_sizes = stage_sizes[: self.stages]
        last_scale = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        x = (images.astype(jnp.float32) / 255).astype(self.dtype)
        x = nn.relu(conv_norm(x, self.width, self.stem_kernel, self.stem_stride))
        if self.stem_pool:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        number, last = 0, max(1, sum(stage_sizes) - 1)
        for stage, num_blocks in enumerate(stage_sizes):
            width = self.width * 2**stage
            features = 4 * width if bottleneck else width
            for block in range(num_blocks):
                stride = 2 if stage and not block else 1
                y = nn.relu(conv_norm(x, width, 1)) if bottleneck else x
                y = nn.relu(conv_norm(y, width, 3, stride))
                y = conv_norm(y, features, 1 if bottleneck else 3, scale_init=last_scale)
                if self.squeeze_excitation:
                    hidden = nn.relu(nn.Dense(max(8, features // 16), dtype=self.dtype)(y.mean((1, 2))))
                    y = y * nn.sigmoid(nn.Dense(features, dtype=self.dtype)(hidden))[:, None, None]
                # Stochastic depth: whole images are dropped, and the others scaled.
                rate = self.stochastic_depth * number / last
                y = nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train)(y)
                if x.shape != y.shape:
                    x = conv_norm(x, features, 1, stride)
                x, number = nn.relu(x + y), number + 1
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2), dtype=jnp.float32))
        return nn.Dense(len(CLASS_NAMES))(x)


def make(spec: dict) -> tuple[Callable[[], Any], int]:
    """Returns a function that starts the work once and returns its result, and the network's number of parameters.

    spec: {task: 'step' or 'inference', batch, image_size, net: fields of ResNet, dtype}.
    """
    keep_programs()
    model = ResNet(**spec["net"], dtype=spec["dtype"])
    images, labels = make_batch(spec["batch"], spec["image_size"])
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images[:1])
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    if spec["task"] == "inference":
        predict = jax.jit(functools.partial(model.apply, train=False))
        return lambda: np.asarray(predict(variables, images)), num_parameters

    optimizer = optax.adam(1e-3)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, images, labels):
        params, batch_stats, opt_state, key = state
        key, dropout = jax.random.split(key)

        def loss_fn(params):
            logits, mutated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout},
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), mutated["batch_stats"]

        (loss, new_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), new_stats, opt_state, key), loss

    params = variables["params"]
    state = params, variables["batch_stats"], jax.jit(optimizer.init)(params), jax.random.key(1)
    images, labels = jax.device_put((images, labels))

    def step():
        nonlocal state
        state, loss = train_step(state, images, labels)
        return loss

    return step, num_parameters
