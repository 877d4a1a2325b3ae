"""Each sanitizer can report an error. The sanitizers' run itself takes minutes and is not part of the suite."""

import pytest

from fer_jax.native import build
from scripts.reliability import sanitizers


@pytest.mark.parametrize("name", sanitizers.SANITIZERS)
def test_a_sanitizer_catches_what_it_is_there_to_find(name):
    try:
        assert sanitizers.catches(name)
    except build.Unavailable as error:
        pytest.skip(f"no sanitizer here: {error}")
