"""XLA's flags, read by a real process."""

import os
import subprocess
import sys

import pytest

from fer_jax.system import accelerators


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "--xla_gpu_deterministic_ops=true"),
        ("--xla_a=1", "--xla_a=1 --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false --xla_gpu_deterministic_ops=true"),
    ],
)
def test_the_flag_is_added_once_after_those_of_the_user(before, after, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before)
    for _ in range(2):
        accelerators.use_deterministic_kernels()
        assert os.environ["XLA_FLAGS"] == after


def test_jax_takes_the_flag():
    program = (
        "from fer_jax.system import accelerators; accelerators.use_deterministic_kernels()\n"
        "import jax; print(jax.device_count(), jax.numpy.ones(3).sum())"
    )
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "3 3.0\n", done.stderr
