"""Folds the batch norms of a trained network into its convolutions, for the native code. Pure.

With running statistics a batch norm is a factor and a shift per channel. The factor is multiplied into the kernel and
the shift becomes a bias. The native convolution applies bias, shortcut and ReLU as it writes its result, in one pass
over memory instead of four, and the kernels are packed once instead of at each call.
"""

from collections.abc import Mapping

from jax import lax

from fer_jax.native import conv as native

COLLECTION = "folded"


def fold(variables: Mapping, dtype, epsilon: float) -> dict:
    """Returns a ResNet's variables {'params', 'batch_stats'} in a form that can only be applied with `train=False`.

    Each convolution and its norm become one item in the collection 'folded', under the convolution's name:
    {'packed': see `native.conv.pack`, 'bias': float32 [out]}. The logits of a float32 network change in the last bits,
    those of a bfloat16 network as if they were rounded differently, since kernels are rounded after they are scaled.

    dtype: dtype of the computation. epsilon: added to a norm's variance. The native library must have been loaded.
    """
    params, folded = _fold_layers(variables["params"], variables["batch_stats"], dtype, epsilon)
    return {"params": params, COLLECTION: folded}


def norm_of(conv: str) -> str:
    """Returns the name of the norm after a convolution: 'stem_norm' for 'stem_conv', 'BatchNorm_0' for 'Conv_0'."""
    return conv.replace("Conv", "BatchNorm").replace("conv", "norm")


def _fold_layers(params: Mapping, statistics: Mapping, dtype, epsilon: float) -> tuple[dict, dict]:
    """Returns the parameters of a module that are not folded, and its folded layers."""
    left, folded = dict(params), {}
    for name, layer in params.items():
        norm = norm_of(name)
        if norm != name and norm in statistics:
            kernel, scaling, running = left.pop(name)["kernel"], left.pop(norm), statistics[norm]
            factor = scaling["scale"] * lax.rsqrt(running["var"] + epsilon)
            bias = scaling["bias"] - running["mean"] * factor
            folded[name] = {"packed": native.pack((kernel * factor).astype(dtype)), "bias": bias}
        elif name in statistics and "scale" not in layer:  # a block
            left[name], folded[name] = _fold_layers(layer, statistics[name], dtype, epsilon)
    return left, folded
