"""The FLOPs of a model and the peak FLOP/s of devices, from which TFLOP/s and MFU are computed. Pure.

A FLOP is a multiplication or an addition. Those of convolutions and matrix products are counted, including products
with padding; those of all other operations are not.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

# The published peak of a device, by `jax.Device.device_kind`, in bfloat16 FLOP/s for dense matrices. A TPU v2 or v3
# device is one of the two cores of a chip.
PEAKS = {
    "NVIDIA H200": 989e12,  # https://www.nvidia.com/en-us/data-center/h200/
    "NVIDIA H100 80GB HBM3": 989e12,  # https://www.nvidia.com/en-us/data-center/h100/, also for the next two
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 312e12,  # https://www.nvidia.com/en-us/data-center/a100/, also for the next three
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L4": 121e12,  # https://www.nvidia.com/en-us/data-center/l4/
    "TPU v2": 23e12,  # https://cloud.google.com/tpu/docs/v2
    "TPU v3": 61.5e12,  # https://cloud.google.com/tpu/docs/v3
    "TPU v4": 275e12,  # https://cloud.google.com/tpu/docs/v4
    "TPU v5 lite": 197e12,  # https://cloud.google.com/tpu/docs/v5e
    "TPU v5": 459e12,  # https://cloud.google.com/tpu/docs/v5p
    "TPU v6 lite": 918e12,  # https://cloud.google.com/tpu/docs/v6e
}

# Training as a multiple of the forward pass: 1x forward, 2x backward. Rematerialisation, augmentation and the optimizer
# are not counted, as is usual for MFU (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B).
TRAINING_PASSES = 3


def peak(devices) -> float | None:
    """Returns the bfloat16 peak of all `devices` together in FLOP/s, or None if any of them is unknown."""
    peaks = [PEAKS.get(device.device_kind) for device in devices]
    return None if None in peaks else sum(peaks)


def forward_flops(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Returns the FLOPs of a model's forward pass for one image.

    The model is traced with XLA's own convolutions on one device, so its conv_fn and axis_name don't change the count.

    Args:
      model: a module with the attributes conv_fn and axis_name.
      image_shape: (height, width, channels).
    """
    model = model.clone(conv_fn=lax.conv_general_dilated, axis_name=None)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    # Drawing the weights needs no convolution or matrix product, and init applies the model once.
    return count(jax.make_jaxpr(lambda image: model.init(jax.random.key(0), image, train=False))(image).jaxpr)


def training_flops(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Returns the FLOPs of training on one image."""
    return TRAINING_PASSES * forward_flops(model, image_shape)


def count(jaxpr) -> int:
    """Returns the FLOPs of the convolutions and matrix products of a jaxpr and of the jaxprs within it.

    The only convolutions that are recognised are XLA's own.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, equation.outvars[0].aval
        if name == "conv_general_dilated":
            kernel, features_axis = equation.invars[1].aval, equation.params["dimension_numbers"].rhs_spec[0]
            total += 2 * out.size * kernel.size // kernel.shape[features_axis]
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * out.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        # jit, custom_vjp and remat keep the jaxpr that they call among their parameters.
        for inner in equation.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                # The body of a loop or a custom gradient is counted once: the networks here have no loops.
                total += count(inner)
    return total
