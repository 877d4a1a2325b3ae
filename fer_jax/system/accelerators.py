"""The devices that JAX computes on: their presence, their faster dtype, and settings that XLA reads once."""

import os
import pathlib

from fer_jax import machine
from fer_jax.errors import UserError

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# Linux's flags for products of bfloat16, on x86 (two kinds of unit) and on Arm.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def use_deterministic_kernels() -> None:
    """Makes a GPU compute the same bits in every run, at some cost in speed. Must precede any use of JAX's devices.

    A CPU computes the same bits anyway and ignores the setting.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    if _DETERMINISTIC not in flags:
        # If a flag is repeated, its last value counts.
        os.environ["XLA_FLAGS"] = " ".join([*flags, _DETERMINISTIC])


def require_devices() -> None:
    """Raises UserError if JAX finds none of the devices that JAX_PLATFORMS asks for."""
    import jax

    platforms = os.environ.get("JAX_PLATFORMS", "")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError, without a message, if the plugin is not installed
        if not platforms:
            raise
        reason = " ".join(str(error).split()) or "its plugin for JAX is not installed"
        extra = {"cuda": "; pip install 'fer_jax[cuda]' brings it", "tpu": "; pip install 'fer_jax[tpu]' brings it"}
        raise UserError(
            f"JAX_PLATFORMS is {platforms}, and there is no such device here ({reason[:200]})"
            f"{extra.get(platforms, '')}; without JAX_PLATFORMS the fastest device that is there is taken"
        ) from error


def resolve_dtype(dtype: str) -> str:
    """Returns the dtype that `config.model.dtype` stands for: for 'auto' the faster one on this process's devices."""
    import jax

    if dtype != "auto":
        return dtype
    is_fast = has_bfloat16() if jax.default_backend() == "cpu" else gpu_has_bfloat16(jax.devices()[0])
    return "bfloat16" if is_fast else "float32"


def gpu_has_bfloat16(device) -> bool:
    """Returns whether a device of JAX computes in bfloat16: all do but NVIDIA's GPUs before Ampere, such as the T4."""
    # '7.5' on NVIDIA's GPUs, another kind of text on AMD's, missing on TPUs.
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return not major.isdecimal() or int(major) >= 8


def has_bfloat16(*cpuinfo: pathlib.Path) -> bool:
    """Returns whether this machine's processor computes in bfloat16.

    Otherwise XLA converts, which takes longer than computing in float32. cpuinfo: read instead of Linux's own.
    """
    return bool(_BFLOAT16_FLAGS & machine.processor_flags(*cpuinfo))
