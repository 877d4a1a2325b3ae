"""Restarting with the C library's memory set up, in real processes."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from fer_jax.system import memory

SCRIPT = textwrap.dedent("""
    import os, sys
    print("started", os.getpid(), flush=True)
    from fer_jax.system import memory as malloc
    malloc.restart_tuned(verbose="--verbose" in sys.argv)
    print("went on with", os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], sys.flags.dont_write_bytecode, flush=True)
""")
ARGUMENTS = ["--config=a b.py", "--config.seed=1", "", "ü*"]
STATE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_madvise = pytest.mark.skipif(
    not STATE.exists() or "[madvise]" not in STATE.read_text(), reason=f"{STATE} does not say madvise"
)


def start(*command: str, tunables: str | None = None, path=()) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [pathlib.Path(__file__).parents[2], *path]))
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    done = subprocess.run([sys.executable, "-B", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("tunables", ["", "glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=0"])
def test_nothing_happens_where_the_variable_is_set(tunables):
    done = start("-c", SCRIPT, *ARGUMENTS, tunables=tunables)
    started, went_on = done.stdout.splitlines()
    assert started.startswith("started ")
    assert went_on == f"went on with {tunables} {ARGUMENTS} 1"
    assert done.stderr == ""


@needs_madvise
@pytest.mark.parametrize("form", ["-c", "a file", "-m"])
def test_the_same_command_starts_again_once_with_memory_set_up(form, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = {"-c": ["-c", SCRIPT], "a file": [str(tmp_path / "script.py")], "-m": ["-m", "script"]}[form]
    done = start(*command, *ARGUMENTS, path=[tmp_path])
    first, second, went_on = done.stdout.splitlines()
    assert first == second  # the same process, which became the new one
    tunables = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=1073741824"
    assert went_on == f"went on with {tunables} {ARGUMENTS} 1"
    assert done.stderr == ""


@needs_madvise
def test_the_restart_is_said_to_whoever_asks():
    (said,) = start("-c", SCRIPT, "--verbose").stderr.splitlines()
    assert said.startswith("Restarting with GLIBC_TUNABLES=glibc.malloc.hugetlb=1:")


@needs_madvise
@pytest.mark.parametrize("platforms", ["cuda", "tpu,cpu"])
def test_nothing_restarts_for_an_accelerator(platforms, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert start("-c", SCRIPT).stdout.splitlines()[1] == "went on with None [] 1"


@pytest.mark.parametrize("device", ["nvidia0", "kfd", "accel1", "vfio/0"])
def test_an_accelerator_is_one_that_is_there_and_that_jax_has_a_plugin_for(device, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: name if has_plugin else None)
    has_plugin = True
    # Files that a driver creates on every machine, even without a device.
    (tmp_path / "nvidiactl").touch()
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()
    assert memory._is_for_cpu(tmp_path)
    (tmp_path / device).touch()
    assert not memory._is_for_cpu(tmp_path)
    has_plugin = False
    assert memory._is_for_cpu(tmp_path)


@needs_madvise
def test_blocks_of_a_batch_are_kept_rather_than_taken_anew():
    take = """
import resource
from fer_jax.system import memory as malloc
malloc.restart_tuned()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(20):
    if i == 10:
        before = faults()
    batches = [bytearray(2_359_296) for _ in range(4)]
    del batches
print(faults() - before)
"""
    kept, taken = (int(start("-c", take, tunables=tunables).stdout) for tunables in (None, ""))
    assert kept < 40 < 2000 < taken


def test_nothing_happens_where_huge_pages_come_unasked_or_never():
    if STATE.exists() and "[madvise]" in STATE.read_text():
        pytest.skip(f"{STATE} says madvise")
    done = start("-c", SCRIPT, *ARGUMENTS)
    assert done.stdout.splitlines()[1:] == [f"went on with None {ARGUMENTS} 1"]
    assert done.stderr == ""


@needs_madvise
def test_only_the_program_restarts_itself_and_not_whoever_calls_it():
    def call(function):
        arguments = ["fer-jax", "--config=nothing", "--verbose"]
        code = f"import sys; from fer_jax import main; sys.argv = {arguments}; main.{function}()"
        environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    called, started = call("run"), call("command")
    assert (called.returncode, started.returncode) == (2, 2)
    assert "Restarting" not in called.stderr
    assert started.stderr.startswith("Restarting with GLIBC_TUNABLES")
