"""The native code, where it can be had."""

import pytest

from fer_jax.native import build


def load(dtype: str = "float32") -> None:
    """Loads the native code, or skips the test and says why."""
    try:
        build.load()
    except build.Unavailable as error:
        pytest.skip(f"no native code here: {error}")
    if dtype not in build.dtypes():
        pytest.skip(f"this processor doesn't compute in {dtype}")
