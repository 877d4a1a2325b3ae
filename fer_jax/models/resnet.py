"""ResNet v1.5 for small grey images, as a pure Flax (linen) module."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fer_jax.models.conv import resolve
from fer_jax.models.norm import BatchNorm

# Depth: (blocks per stage, bottleneck), He et al. 2016, https://arxiv.org/abs/1512.03385, table 1.
ARCHITECTURES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def _conv(features: int, kernel: int, stride: int = 1, *, name: str | None = None, **kwargs) -> nn.Conv:
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=kernel // 2,
        # Before a batch norm a bias has no effect but a round-off gradient, which Adam would blow up.
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        name=name,
        **kwargs,
    )


def _max_pool(x):
    """3x3 max pooling with stride 2 and padding 1, of values that are not negative, first of rows, then of columns.

    Where values tie, the first takes the gradient.
    """
    return _max_of_three(_max_of_three(x, 1), 2)


# XLA:CPU is slow at reduce-window and at its gradient; these are slices and sums of slices.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_of_three(x, axis: int):
    """The greatest of 2i-1, 2i and 2i+1 along `axis`, for each i."""
    return functools.reduce(jnp.maximum, _three(x, axis))


def _three(x, axis: int) -> list:
    size = (x.shape[axis] + 1) // 2
    margins = [(0, 0)] * x.ndim
    margins[axis] = (1, 2 * size - x.shape[axis])
    padded = jnp.pad(x, margins)
    return [lax.slice_in_dim(padded, i, i + 2 * size - 1, 2, axis) for i in range(3)]


def _max_of_three_forward(x, axis):
    y = _max_of_three(x, axis)
    return y, (x, y)


def _max_of_three_backward(axis, residuals, dy):
    x, y = residuals
    before, at, after = (tap == y for tap in _three(x, axis))
    to_before = jnp.where(before, dy, 0)
    to_at = jnp.where(at & ~before, dy, 0)
    to_after = jnp.where(after & ~at & ~before, dy, 0)
    # Pixel 2i+1 is the one after 2i and the one before 2(i+1).
    margins = [(0, 0)] * x.ndim
    margins[axis] = (0, 1)
    odd = to_after + jnp.pad(lax.slice_in_dim(to_before, 1, None, axis=axis), margins)
    shape = list(x.shape)
    shape[axis] = 2 * y.shape[axis]
    dx = jnp.stack([to_at, odd], axis + 1).reshape(shape)
    return (lax.slice_in_dim(dx, 0, x.shape[axis], axis=axis),)


_max_of_three.defvjp(_max_of_three_forward, _max_of_three_backward)


class Block(nn.Module):
    """A residual block; the stride sits in the (first) 3x3 convolution ("v1.5").

    `bottleneck`: 1x1, 3x3, 1x1 with four times the width at the end; else 3x3, 3x3.
    """

    width: int
    stride: int
    bottleneck: bool
    conv: Callable
    norm: Callable
    zero_init: bool

    @nn.compact
    def __call__(self, x):
        last_scale = nn.initializers.zeros_init() if self.zero_init else nn.initializers.ones_init()
        out = self.width * 4 if self.bottleneck else self.width
        y = x
        if self.bottleneck:
            y = self.norm()(self.conv(self.width, 1)(y), relu=True)
        y = self.norm()(self.conv(self.width, 3, self.stride)(y), relu=True)
        y = self.conv(out, 1 if self.bottleneck else 3)(y)
        if x.shape != y.shape:
            x = self.conv(out, 1, self.stride, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_norm")(x, relu=False)
        return self.norm(scale_init=last_scale)(y, relu=True, shortcut=x)


class ResNet(nn.Module):
    """The network: float [batch, height, width, channels] -> float32 logits [batch, num_classes].

    stem_kernel, stem_stride, stem_pool: 7, 2, True as in the paper; 3, 2, False or 3, 1, False keep two or four
    times the resolution, which 48-pixel faces reward. zero_init: the last scale of each block starts at zero
    (Goyal et al. 2017, https://arxiv.org/abs/1706.02677). dtype: what is computed in; parameters, batch
    statistics and logits are float32. axis_name: the mapped axis to average batch statistics over, if any.
    remat: blocks are computed again for their gradient rather than kept. conv_fn: see `models.conv`. The stages'
    outputs are sown as intermediates 'stem' and 'stage1'...'stage4'.
    """

    stage_sizes: Sequence[int]
    bottleneck: bool
    num_classes: int = 7
    width: int = 64
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: bool = True
    zero_init: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None
    remat: bool = False
    conv_fn: Callable = lax.conv_general_dilated

    @nn.compact
    def __call__(self, images, *, train: bool):
        conv = functools.partial(_conv, dtype=self.dtype, conv_general_dilated=self.conv_fn)
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name if train else None,
        )
        x = images.astype(self.dtype)
        x = conv(self.width, self.stem_kernel, self.stem_stride, name="stem_conv")(x)
        x = norm(name="stem_norm")(x, relu=True)
        if self.stem_pool:
            x = _max_pool(x)
        self.sow("intermediates", "stem", x)
        block_class = nn.remat(Block) if self.remat else Block
        for stage, num_blocks in enumerate(self.stage_sizes, 1):
            for block in range(num_blocks):
                x = block_class(
                    width=self.width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and block == 0 else 1,
                    bottleneck=self.bottleneck,
                    conv=conv,
                    norm=norm,
                    zero_init=self.zero_init,
                    name=f"stage{stage}_block{block + 1}",
                )(x)
            self.sow("intermediates", f"stage{stage}", x)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


def make(model_config: Mapping[str, Any], *, num_classes: int, axis_name: str | None, backend: str) -> ResNet:
    """Assembles a network from `config.model`, to run on `backend` ('cpu', 'gpu', 'tpu')."""
    stage_sizes, bottleneck = ARCHITECTURES[model_config["depth"]]
    return ResNet(
        stage_sizes=stage_sizes,
        bottleneck=bottleneck,
        num_classes=num_classes,
        width=model_config["width"],
        stem_kernel=model_config["stem_kernel"],
        stem_stride=model_config["stem_stride"],
        stem_pool=model_config["stem_pool"],
        zero_init=model_config["zero_init"],
        dtype=jnp.dtype(model_config["dtype"]),
        axis_name=axis_name if model_config["sync_batch_norm"] else None,
        remat=model_config["remat"],
        conv_fn=resolve(model_config["conv"], backend),
    )


def cast_kernels(variables: Mapping, dtype) -> Mapping:
    """Gives the variables with the convolutions' kernels as `dtype`, in which they are computed anyway.

    Done once before evaluating: otherwise each batch begins with reading and writing all of them.
    """
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim == 4 else x, variables)
