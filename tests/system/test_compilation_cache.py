"""Compiled programs are kept for the next process, and a faulty cache folder doesn't stop a process."""

import os
import pathlib
import subprocess
import sys

import pytest

from fer_jax.system import compilation_cache

PROGRAM = """
import jax, time
from fer_jax.system import compilation_cache
from fer_jax.system.terminal import Terminal
compilation_cache._MIN_COMPILE_TIME = 0.0
compilation_cache.enable(Terminal(is_primary=True))
with compilation_cache.Hits() as hits:
    print(float(jax.jit(lambda x: (x @ x.T).sum())(jax.numpy.ones((8, 8)))), hits.are_all)
"""


def run(cache: pathlib.Path, **environment: str) -> tuple[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    inherited |= {"XDG_CACHE_HOME": str(cache)} | environment
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=inherited, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


def cut(content: bytes) -> bytes:
    return content[:50]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def foreign(content: bytes) -> bytes:
    """Returns the entry as JAX itself would have written it, on any machine."""
    return content[compilation_cache._DIGEST_SIZE :]


def of_another_machine(content: bytes) -> bytes:
    """Returns the entry as this package would have written it for other processors."""
    return compilation_cache._digest(b"another machine", foreign(content)) + foreign(content)


def test_the_second_process_compiles_nothing_and_an_entry_that_is_not_its_own_is_made_again(tmp_path):
    assert run(tmp_path)[0] == "512.0 False"
    assert run(tmp_path)[0] == "512.0 True"
    entries = [path for path in tmp_path.rglob("*-cache") if path.is_file()]
    assert entries
    for damage in (cut, flip, foreign, of_another_machine):
        for entry in entries:
            entry.write_bytes(damage(entry.read_bytes()))
        out, err = run(tmp_path)
        assert out == "512.0 False", damage.__name__
        assert "Traceback" not in err
        assert "warning" not in err.lower()
        for entry in entries:
            content = foreign(entry.read_bytes())
            digest = compilation_cache._digest(entry.parent.name.encode(), content)
            assert entry.read_bytes() == digest + content, damage.__name__
    assert run(tmp_path)[0] == "512.0 True"


def test_the_user_s_own_cache_is_left_as_it_is(tmp_path):
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))[0].startswith("512.0")
    assert not (tmp_path / "fer_jax").exists()


def test_a_cache_that_can_not_be_made_is_said_and_stops_nothing(tmp_path):
    (tmp_path / "fer_jax").write_text("a file")
    out, err = run(tmp_path)
    assert out.startswith("512.0")
    assert "compiled programs are not kept for the next start" in err


def test_a_user_without_a_home_is_told_what_chooses_a_cache(tmp_path):
    # The home folder that pathlib finds for a user without HOME and without an entry in the system's list of users.
    out, err = run("", HOME="~")
    assert out.startswith("512.0")
    assert "compiled programs are not kept for the next start: this user has no home folder; " in err
    assert "XDG_CACHE_HOME" in err
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said(tmp_path):
    (tmp_path / "fer_jax").mkdir(mode=0o500)
    assert "are not kept" in run(tmp_path)[1]
