"""Restarting with huge pages, in real processes."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

SCRIPT = textwrap.dedent("""
    import os, sys
    print("started", os.getpid(), flush=True)
    from fer_jax import huge_pages
    huge_pages.restart_with()
    print("went on with", os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], sys.flags.dont_write_bytecode, flush=True)
""")
ARGUMENTS = ["--config=a b.py", "--config.seed=1", "", "ü*"]
STATE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_madvise = pytest.mark.skipif(
    not STATE.exists() or "[madvise]" not in STATE.read_text(), reason=f"{STATE} does not say madvise"
)


def start(*command: str, tunables: str | None = None, path=()) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [pathlib.Path(__file__).parents[1], *path]))
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
def test_the_same_command_starts_again_once_with_huge_pages(form, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = {"-c": ["-c", SCRIPT], "a file": [str(tmp_path / "script.py")], "-m": ["-m", "script"]}[form]
    done = start(*command, *ARGUMENTS, path=[tmp_path])
    first, second, went_on = done.stdout.splitlines()
    assert first == second  # one process, which became the new one
    assert went_on == f"went on with glibc.malloc.hugetlb=1 {ARGUMENTS} 1"
    (said,) = done.stderr.splitlines()
    assert "GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in said


def test_nothing_happens_where_huge_pages_come_unasked_or_never():
    if STATE.exists() and "[madvise]" in STATE.read_text():
        pytest.skip(f"{STATE} says madvise")
    done = start("-c", SCRIPT, *ARGUMENTS)
    assert done.stdout.splitlines()[1:] == [f"went on with None {ARGUMENTS} 1"]
    assert done.stderr == ""
