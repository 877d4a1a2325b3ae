"""The devices that JAX computes on: whether they are there, what they are fast at, settings that XLA reads once."""

import os
import pathlib

from fer_jax import machine
from fer_jax.errors import UserError

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# Products of bfloat16, on x86 (two kinds of unit) and on Arm, as Linux lists them.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def use_deterministic_kernels() -> None:
    """Makes a GPU compute the same bits in every run, at some cost in speed. Must precede any use of JAX's devices.

    A CPU computes the same bits anyway and ignores the setting.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    if _DETERMINISTIC not in flags:
        # The last of several equal flags counts.
        os.environ["XLA_FLAGS"] = " ".join([*flags, _DETERMINISTIC])


def require_devices() -> None:
    """Raises UserError where JAX finds none of the devices that JAX_PLATFORMS asks for."""
    import jax

    platforms = os.environ.get("JAX_PLATFORMS", "")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter, without a word, where the plugin is not installed
        if not platforms:
            raise
        reason = " ".join(str(error).split()) or "its plugin for JAX is not installed"
        extra = {"cuda": "; pip install 'fer_jax[cuda]' brings it", "tpu": "; pip install 'fer_jax[tpu]' brings it"}
        raise UserError(
            f"JAX_PLATFORMS is {platforms}, and there is no such device here ({reason[:200]})"
            f"{extra.get(platforms, '')}; without JAX_PLATFORMS the fastest device that is there is taken"
        ) from error


def resolve_dtype(dtype: str) -> str:
    """Returns the dtype of a `config.model.dtype`: for 'auto' the faster one on this process's devices."""
    import jax

    if dtype != "auto":
        return dtype
    return "bfloat16" if jax.default_backend() != "cpu" or has_bfloat16() else "float32"


def has_bfloat16(*cpuinfo: pathlib.Path) -> bool:
    """Whether this machine's processor computes in bfloat16; without, XLA converts, which takes longer than float32.

    cpuinfo: in place of Linux's own.
    """
    return bool(_BFLOAT16_FLAGS & machine.processor_flags(*cpuinfo))
