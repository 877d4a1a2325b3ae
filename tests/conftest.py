"""What every test runs on: eight CPU devices, whatever the machine has, and little time spent compiling."""

import os
import tempfile

# Before JAX and TensorFlow are imported, which read them once; child processes inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import hypothesis
import jax

# Tests compile many small programs and run each a few times. Switched on again where an optimisation is tested.
jax.config.update("jax_disable_most_optimizations", True)
# The loop's tests compile the same two steps again and again.
_cache = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", _cache.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("suite")
