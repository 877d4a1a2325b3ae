"""A trained network's convolutions with their batch norms folded into them, for the native code. Pure.

With running statistics a batch norm is a factor and a shift a channel. The factor goes into the kernel and the shift
becomes a bias, which the native convolution adds as it writes its result, with shortcut and ReLU: what was four passes
over memory is one, and the kernels are packed once instead of at each call.
"""

from collections.abc import Mapping

from jax import lax

from fer_jax.native import conv as native

COLLECTION = "folded"


def fold(variables: Mapping, dtype, epsilon: float) -> dict:
    """Returns the variables {'params', 'batch_stats'} of a ResNet, to be applied with `train=False` and nothing else.

    Of each convolution and its norm there is one item instead, in the collection 'folded' under the convolution's name:
    {'packed': see `native.conv.pack`, 'bias': float32 [out]}. The logits of a float32 network change in the last bits;
    those of a bfloat16 one as by another rounding, since kernels are rounded after they are scaled.

    dtype: of the computation. epsilon: what a norm adds to the variance. The native library must have been loaded.
    """
    params, folded = _fold_layers(variables["params"], variables["batch_stats"], dtype, epsilon)
    return {"params": params, COLLECTION: folded}


def norm_of(conv: str) -> str:
    """Returns the name of the norm after a convolution: 'stem_norm' of 'stem_conv', 'BatchNorm_0' of 'Conv_0'."""
    return conv.replace("Conv", "BatchNorm").replace("conv", "norm")


def _fold_layers(params: Mapping, statistics: Mapping, dtype, epsilon: float) -> tuple[dict, dict]:
    """Returns what is left of the parameters of a module, and its folded layers."""
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
