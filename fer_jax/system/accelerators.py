"""Settings of accelerators that XLA reads once, when JAX first looks for devices."""

import os

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def use_deterministic_kernels() -> None:
    """Makes a GPU compute the same bits in every run, at some cost in speed. Must precede any use of JAX's devices.

    A CPU computes the same bits anyway and ignores the setting.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    if _DETERMINISTIC not in flags:
        # The last of several equal flags counts.
        os.environ["XLA_FLAGS"] = " ".join([*flags, _DETERMINISTIC])
