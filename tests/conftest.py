"""Settings of every test: eight CPU devices, whatever the machine has, and little time spent compiling."""

import os
import tempfile

# These are set before JAX and TensorFlow are imported, which read them once. Child processes inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

# Tests compile many small programs and run each a few times. Tests of an optimisation switch optimisations on again.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
# The tests of the loop compile the same steps many times, in several processes, so they share a cache.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import hypothesis
import pytest

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("suite")


@pytest.fixture(params=["float32", "bfloat16"])
def native_dtype(request):
    """Loads the native code and returns one of its dtypes; a test runs with each."""
    from tests.support import native  # imported only when needed, because it imports JAX

    native.load(request.param)
    return request.param


def pytest_runtest_setup(item):
    # By marker, so that .ci/run finds all of these tests in one run.
    if item.get_closest_marker("video"):
        pytest.importorskip("cv2", reason="needs pip install -e '.[video]'")


def pytest_collection_modifyitems(items):
    # The longest tests run first, so that no worker is left alone with one of them at the end.
    long = ("test_version_0_1.py", "test_kills.py", "test_scaling.py", "end_to_end", "scripts", "recipe")
    items.sort(key=lambda item: next((i for i, name in enumerate(long) if name in str(item.path)), len(long)))
