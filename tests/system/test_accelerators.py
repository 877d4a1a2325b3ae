"""XLA's flags, read by a real process."""

import os
import subprocess
import sys
import types

import pytest

from fer_jax import machine
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


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 fma", True),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile", True),
        ("Features\t: fp asimd sve bf16 i8mm", True),
        ("flags\t\t: fpu avx2 avx512f avx512_fp16", False),
        ("Features\t: fp asimd", False),
    ],
)
def test_a_processor_computes_in_bfloat16_where_linux_says_so(cpuinfo, expected, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n" + cpuinfo)
    assert accelerators.has_bfloat16(tmp_path / "cpuinfo") == expected
    assert not accelerators.has_bfloat16(tmp_path / "missing")


@pytest.mark.parametrize(
    ("capability", "expected"), [("7.5", False), ("8.0", True), ("12.0", True), ("gfx942", True), (None, True)]
)
def test_gpus_compute_in_bfloat16_from_ampere_on(capability, expected):
    device = types.SimpleNamespace(**{} if capability is None else {"compute_capability": capability})
    assert accelerators.gpu_has_bfloat16(device) == expected


@pytest.mark.parametrize(("flags", "expected"), [({"avx2", "avx512_bf16"}, "bfloat16"), ({"avx2"}, "float32")])
def test_auto_is_what_the_processor_is_faster_at(flags, expected, monkeypatch):
    monkeypatch.setattr(machine, "processor_flags", lambda *_: flags)
    assert accelerators.resolve_dtype("auto") == expected
    assert accelerators.resolve_dtype("float32") == "float32"
