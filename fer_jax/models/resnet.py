"""ResNet v1.5 for small grey images, as a Flax (linen) module. Pure.

He et al. 2016, https://arxiv.org/abs/1512.03385.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fer_jax.models.conv import keep_kernel, native_conv_general_dilated, resolve
from fer_jax.models.conv_norm import ConvNorm, array_of
from fer_jax.models.fold import fold
from fer_jax.models.initializers import he_normal_fan_out
from fer_jax.models.norm import Activation, BatchNorm, Pending
from fer_jax.models.pool import max_pool
from fer_jax.native import conv as native

# Depth: (blocks per stage, bottleneck), as in table 1 of the paper; 10 has half the blocks of 18.
ARCHITECTURES = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}

BATCH_NORM_EPSILON = 1e-5  # added to the variance


def _conv(features: int, kernel: int, stride: int = 1, *, name: str | None = None, **kwargs) -> nn.Conv:
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=kernel // 2,
        # The batch norm would cancel a bias. Its gradient would be round-off, which Adam scales up to full steps.
        use_bias=False,
        kernel_init=he_normal_fan_out,
        name=name,
        **kwargs,
    )


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor in [0, 1], computed from all channels' means (Hu et al. 2018, ratio 16).

    https://arxiv.org/abs/1709.01507. Maps [batch, height, width, channels] to the same shape.
    """

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        means = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        # With few channels, a sixteenth of them would leave no layer at all.
        hidden = nn.relu(nn.Dense(max(8, channels // 16), dtype=jnp.float32, name="squeeze")(means))
        factors = nn.sigmoid(nn.Dense(channels, dtype=jnp.float32, name="excite")(hidden))
        return x * factors[:, None, None, :].astype(x.dtype)


def _drop(keys, x, rate: float, shape: tuple[int, ...]):
    """Returns x, [batch, ...], with parts set to zero at `rate`, and the remaining values scaled by 1 / (1 - rate).

    keys: a key for each example. shape: the shape of an example's mask, which broadcasts to that of x.
    """
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def _fold_in(keys, number: int):
    # Each block has its own draws.
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)


class Block(nn.Module):
    """A residual block: [batch, height, width, in] -> [batch, height / stride, width / stride, out].

    Attributes:
      bottleneck: whether the convolutions are 1x1, 3x3 and 1x1, the last with four times the width, or 3x3 and 3x3.
      stride: stride of the first 3x3 convolution. This is "v1.5"; in the paper the first 1x1 convolution has the
        stride and ignores three of four pixels.
      layer: function that makes a ConvNorm.
      zero_init: whether the last scale starts at zero, so that the block starts as its shortcut.
      squeeze_excitation: whether the residual branch ends in a SqueezeExcitation.
      drop_rate: probability that an image takes only the shortcut (stochastic depth, Huang et al. 2016,
        https://arxiv.org/abs/1603.09382).
    """

    width: int
    stride: int
    bottleneck: bool
    layer: Callable
    zero_init: bool
    squeeze_excitation: bool = False
    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, x, keys=None):
        features = 4 * self.width if self.bottleneck else self.width
        layers = [(self.width, 1, 1)] * self.bottleneck + [(self.width, 3, self.stride)]
        y, shortcut = x, None
        for number, layer in enumerate(layers):
            # Only the next layer reads this layer's result, so it need not be written.
            y, taken = self.layer(self, *layer, (f"Conv_{number}", f"BatchNorm_{number}"))(y, output=Pending)
            # Read from the first layer, which adds the shortcut's gradient to its own.
            shortcut = taken if number == 0 else shortcut
        if shortcut.shape[-1] != features or self.stride > 1:  # a projection only where the identity doesn't fit
            names = "shortcut_conv", "shortcut_norm"
            shortcut, _ = self.layer(self, features, 1, self.stride, names)(shortcut, relu=False)
        last_scale = nn.initializers.zeros_init() if self.zero_init else nn.initializers.ones_init()
        names = f"Conv_{len(layers)}", f"BatchNorm_{len(layers)}"
        last = self.layer(self, features, 1 if self.bottleneck else 3, 1, names, scale_init=last_scale)
        if not self.squeeze_excitation and not self.drop_rate:
            return last(y, shortcut=shortcut, output=Activation)[0]
        # The shortcut is added after the operations below, so the norm can't add it.
        y, _ = last(y, relu=False)
        if self.squeeze_excitation:
            y = SqueezeExcitation(name="squeeze_excitation")(y)
        if self.drop_rate and keys is not None:
            y = _drop(keys, y, self.drop_rate, (1, 1, 1))
        return nn.relu(y + shortcut)


def _layer(
    parent: nn.Module, features: int, window: int, stride: int, names, *, norm: Callable, scale_init=None, **kwargs
):
    """Returns a ConvNorm whose variables belong to the parent, under `names`."""
    if scale_init is not None:
        norm = functools.partial(norm, scale_init=scale_init)
    layer = ConvNorm(features, window, stride, names=names, norm=norm, **kwargs)
    nn.share_scope(parent, layer)
    return layer


class ResNet(nn.Module):
    """Maps images, float [batch, height, width, channels], to logits, float32 [batch, num_classes].

    The outputs of the stem and of each stage are sown as intermediates 'stem' and 'stage1', 'stage2', ...

    Attributes:
      stage_sizes: the number of blocks of each stage.
      width: channels of the stem and of the first stage; each further stage has twice as many.
      stem_kernel, stem_stride, stem_pool: 7, 2, True as in the paper. 3, 2, False and 3, 1, False keep two and four
        times the resolution, which suits images of 48 pixels.
      zero_init: whether the last scale of each block starts at zero (Goyal et al. 2017,
        https://arxiv.org/abs/1706.02677).
      dtype: dtype of the computation. Parameters, batch statistics and logits are float32.
      axis_name: the mapped axis over which batch statistics are averaged, or None.
      remat: whether the backward pass recomputes each block, which is a third more work, instead of keeping the block's
        activations. This lowers a process's peak memory only if those activations cause the peak: on CPU with batch
        64 they don't (docs/performance.md).
      conv_fn: function that computes a convolution (see `models.conv`).
      batch_norm_momentum: the share of the running statistics that a step keeps; PyTorch's momentum is 1 minus this.
      squeeze_excitation: whether each block has a SqueezeExcitation.
      stochastic_depth: `drop_rate` of the last block; that of the other blocks grows from 0 in equal steps.
      dropout: the rate at which the head's inputs are dropped in training.
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
    batch_norm_momentum: float = 0.9
    squeeze_excitation: bool = False
    stochastic_depth: float = 0.0
    dropout: float = 0.0

    @property
    def is_random(self) -> bool:
        """Whether training needs `keys` for random draws."""
        return bool(self.stochastic_depth or self.dropout)

    @nn.compact
    def __call__(self, images, *, train: bool, keys=None):
        """Returns the logits; keys: a key for each image for the random draws of training, or None for no draws."""
        conv = functools.partial(_conv, dtype=self.dtype, conv_general_dilated=self.conv_fn)
        is_native = self.conv_fn is native_conv_general_dilated
        if is_native:
            # The native convolution takes the kernels in float32.
            conv = functools.partial(conv, promote_dtype=keep_kernel)
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            momentum=self.batch_norm_momentum,
            epsilon=BATCH_NORM_EPSILON,
            dtype=self.dtype,
            axis_name=self.axis_name if train else None,
            native=is_native,
        )
        layer = functools.partial(_layer, conv=conv, norm=norm, fused=is_native and train)
        stem = layer(self, self.width, self.stem_kernel, self.stem_stride, ("stem_conv", "stem_norm"))
        # Evaluation may pass keys too, but draws nothing.
        keys = keys if train else None
        x = images.astype(self.dtype)
        if self.stem_pool:
            x, _ = stem(x)
            x = max_pool(x, native=is_native)
        else:
            x, _ = stem(x, output=Activation)
        self.sow("intermediates", "stem", array_of(x))
        block_class = nn.remat(Block) if self.remat else Block
        number, last = 0, max(1, sum(self.stage_sizes) - 1)
        for stage, num_blocks in enumerate(self.stage_sizes, 1):
            for block in range(num_blocks):
                x = block_class(
                    width=self.width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and block == 0 else 1,
                    bottleneck=self.bottleneck,
                    layer=layer,
                    zero_init=self.zero_init,
                    squeeze_excitation=self.squeeze_excitation,
                    drop_rate=self.stochastic_depth * number / last,
                    name=f"stage{stage}_block{block + 1}",
                )(x, _fold_in(keys, number))
                number += 1
            self.sow("intermediates", f"stage{stage}", array_of(x))
        # The mean is in float32: in bfloat16 a mean over many values would lose their last bits.
        x = jnp.mean(array_of(x), axis=(1, 2), dtype=jnp.float32)
        if self.dropout and keys is not None:
            x = _drop(_fold_in(keys, number), x, self.dropout, x.shape[1:])
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


def make(model_config: Mapping[str, Any], *, num_classes: int, axis_name: str | None) -> ResNet:
    """Returns the model of a `config.model` whose `dtype` and `conv` are not 'auto' (see `native.build.choose`).

    axis_name: the mapped axis over which batch statistics are averaged if `sync_batch_norm` is set.
    """
    stage_sizes, bottleneck = ARCHITECTURES[model_config["depth"]]
    return ResNet(
        stage_sizes=stage_sizes[: model_config["stages"]],
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
        conv_fn=resolve(model_config["conv"]),
        batch_norm_momentum=model_config["batch_norm_momentum"],
        squeeze_excitation=model_config["squeeze_excitation"],
        stochastic_depth=model_config["stochastic_depth"],
        dropout=model_config["dropout"],
    )


def prepare(model: ResNet, variables: Mapping) -> Mapping:
    """Returns a trained network's variables in the form that is fastest for many calls of `apply` with `train=False`.

    With the native convolution, batch norms are folded into the kernels (`models.fold`), and the logits differ in the
    last bits. Otherwise kernels are cast to the model's dtype, and the logits are the same.
    """
    if model.conv_fn is native_conv_general_dilated and model.stem_kernel <= native.MAX_SIZE:
        return fold(variables, model.dtype, BATCH_NORM_EPSILON)
    # Only the kernels of convolutions have four axes. The head's kernel has two and stays in float32.
    return jax.tree.map(lambda x: x.astype(model.dtype) if x.ndim == 4 else x, variables)
