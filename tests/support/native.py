"""The native code, on machines on which it is available."""

import pytest

from fer_jax.native import build


def load(dtype: str = "float32") -> None:
    """Loads the native code, or skips the test and gives the reason."""
    try:
        build.load()
    except build.Unavailable as error:
        pytest.skip(f"no native code here: {error}")
    if dtype not in build.dtypes():
        pytest.skip(f"this processor doesn't compute in {dtype}")
