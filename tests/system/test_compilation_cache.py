"""Compiled programs are kept for the next process, and nothing that is wrong with the folder stops one."""

import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
import jax, time
from fer_jax.system import compilation_cache
from fer_jax.system.terminal import Terminal
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
compilation_cache._MIN_COMPILE_TIME = 0.0
compilation_cache.enable(Terminal(is_primary=True))
print(float(jax.jit(lambda x: (x @ x.T).sum())(jax.numpy.ones((8, 8)))), sum(hits) > 0)
"""


def run(cache: pathlib.Path, **environment: str) -> tuple[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    inherited |= {"XDG_CACHE_HOME": str(cache)} | environment
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=inherited, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


def test_the_second_process_compiles_nothing_and_a_damaged_entry_is_made_again(tmp_path):
    assert run(tmp_path)[0] == "512.0 False"
    assert run(tmp_path)[0] == "512.0 True"
    entries = [path for path in tmp_path.rglob("*-cache") if path.is_file()]
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:50])
    out, err = run(tmp_path)
    assert out.startswith("512.0")
    assert "Traceback" not in err
    assert run(tmp_path)[0].startswith("512.0")


def test_the_user_s_own_cache_is_left_as_it_is(tmp_path):
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))[0].startswith("512.0")
    assert not (tmp_path / "fer_jax").exists()


def test_a_cache_that_can_not_be_made_is_said_and_stops_nothing(tmp_path):
    (tmp_path / "fer_jax").write_text("a file")
    out, err = run(tmp_path)
    assert out.startswith("512.0")
    assert "compiled programs are not kept for the next start" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said(tmp_path):
    (tmp_path / "fer_jax").mkdir(mode=0o500)
    assert "are not kept" in run(tmp_path)[1]
