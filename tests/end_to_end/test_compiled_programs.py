"""A run whose program comes from the compilation cache ends with the same bits as a run that compiled it."""

import os
import subprocess

import numpy as np

from tests.end_to_end.test_main import command
from tests.support.checkpoints import read_arrays


def train(csv_file, workdir, cache) -> str:
    """Trains in a separate process and returns its standard output."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(cache), "XLA_FLAGS": "", "GLIBC_TUNABLES": ""}
    arguments = list(map(str, command(csv_file, workdir, num_epochs=1)))
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert "warning" not in done.stderr.lower()
    return done.stdout


def test_programs_from_the_cache_compute_the_same(csv_file, tmp_path):
    cache = tmp_path / "cache"
    found = "(from the cache of compiled programs)"
    assert found not in train(csv_file, tmp_path / "cold", cache)
    assert found in train(csv_file, tmp_path / "warm", cache)
    entries = list((cache / "fer_jax" / "programs").rglob("*-cache"))
    assert any("repeated" in entry.name for entry in entries)
    arrays, others = read_arrays(tmp_path / "cold"), read_arrays(tmp_path / "warm")
    assert others.keys() == arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(others[path], array, err_msg=path)
