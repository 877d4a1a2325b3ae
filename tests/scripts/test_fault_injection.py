"""A run that is killed twenty times is the run that it would have been."""

import jax

from scripts import fault_injection


def test_twenty_kills_change_nothing(tmp_path, monkeypatch):
    # One device, little optimisation, and nothing compiled twice.
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    killed = fault_injection.inject(20, seed=0, folder=tmp_path)
    assert sum(killed.values()) - killed["runs"] == 20
    assert len(killed) > 4  # at moments of several kinds
