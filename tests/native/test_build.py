"""Compilation of the native code: once, with the compiler and instructions at hand; a damaged library isn't loaded."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from fer_jax import machine
from fer_jax.errors import UserError
from fer_jax.native import build

ROOT = pathlib.Path(__file__).parents[2]


needs_compiler = pytest.mark.skipif(
    not build.instructions() or not any(map(shutil.which, build._COMPILERS)), reason="no AVX2 or no C++ compiler"
)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Writes a stand-in for a compiler that counts the libraries it links and makes files of a few bytes."""
    path = tmp_path / "bin" / "c++"
    path.parent.mkdir()
    path.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo "a compiler 1"; exit; }\n'
        f'case " $* " in *" -c "*) ;; *) echo linked >> {tmp_path}/count ;; esac\n'
        'sleep 0.2\nwhile [ "$1" != -o ]; do shift; done\necho library > "$2"\n'
    )
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


def count(tmp_path) -> int:
    return len((tmp_path / "count").read_text().splitlines())


def test_it_is_compiled_once_and_again_for_another_compiler(tmp_path, compiler):
    first = build.compiled(tmp_path / "cache")
    assert first.read_text() == "library\n"
    assert build.compiled(tmp_path / "cache") == first
    assert count(tmp_path) == 1
    compiler.write_text(compiler.read_text().replace("a compiler 1", "a compiler 2"))
    assert build.compiled(tmp_path / "cache") != first
    assert count(tmp_path) == 2
    assert len(list((tmp_path / "cache").glob("*.so"))) == 2


def test_a_compiler_may_be_a_command_of_several_words(tmp_path, compiler, monkeypatch):
    monkeypatch.setenv("CXX", f"env {compiler}")
    assert build.compiled(tmp_path / "cache").read_text() == "library\n"


def test_flags_that_mean_this_processor_are_of_this_processor(tmp_path, compiler, monkeypatch):
    monkeypatch.setenv("CXXFLAGS", "-march=native")
    libraries = set()
    for flags in ({"avx2", "fma"}, {"avx2", "fma", "avx_vnni"}):
        monkeypatch.setattr(machine, "processor_flags", lambda flags=flags: flags)
        libraries.add(build.compiled(tmp_path / "cache"))
    assert len(libraries) == 2


@pytest.mark.parametrize("damage", ["truncated", "changed", "no digest", "another digest", "no text"])
def test_a_damaged_library_is_made_again(tmp_path, compiler, damage):
    library = build.compiled(tmp_path / "cache")
    digest = library.with_suffix(".sha256")
    if damage == "truncated":
        os.truncate(library, 3)
    elif damage == "changed":
        library.write_text("Library\n")
    elif damage == "no digest":
        digest.unlink()
    else:
        digest.write_bytes(b"0" * 64 if damage == "another digest" else b"\xff")
    assert build.compiled(tmp_path / "cache") == library
    assert library.read_text() == "library\n"
    assert count(tmp_path) == 2


def test_processes_that_start_at_once_compile_once(tmp_path, compiler):
    program = (
        f"from fer_jax.native import build; import pathlib; print(build.compiled(pathlib.Path({str(tmp_path)!r})))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = {process.communicate(timeout=120)[0] for process in processes}
    assert len(outputs) == 1
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert count(tmp_path) == 1


def test_without_a_compiler_the_reason_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.Unavailable, match=r"no C\+\+ compiler: none of c\+\+, g\+\+, clang\+\+ is there"):
        build.compiled(tmp_path / "cache")


def test_a_compiler_that_fails_is_quoted_in_one_line(tmp_path, compiler):
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit\necho "conv.cc: In function" >&2\necho "error: no avx" >&2\nexit 1'
    )
    with pytest.raises(build.Unavailable, match=r"c\+\+ failed: error: no avx$"):
        build.compiled(tmp_path / "cache")
    assert list((tmp_path / "cache").glob("conv-*")) == []


def test_a_cache_that_can_not_be_written_is_named(tmp_path, compiler):
    (tmp_path / "file").write_text("")
    with pytest.raises(build.Unavailable, match=r"file/cache: Not a directory"):
        build.compiled(tmp_path / "file" / "cache")


def test_a_sound_library_in_a_cache_that_can_only_be_read_is_taken(tmp_path, compiler):
    library = build.compiled(tmp_path / "cache")
    # A folder can't be opened for writing even by root, whom missing permissions would not stop.
    (tmp_path / "cache" / "lock").unlink()
    (tmp_path / "cache" / "lock").mkdir()
    assert build.compiled(tmp_path / "cache") == library
    library.write_text("Library\n")
    with pytest.raises(build.Unavailable, match=r"cache/lock: Is a directory"):
        build.compiled(tmp_path / "cache")


@pytest.mark.skipif(not build.instructions(), reason="no AVX2")
def test_a_library_that_can_not_be_loaded_is_done_without(tmp_path, compiler):
    # The output of this compiler can't be loaded, like a library that was linked with another system's C library.
    program = "from fer_jax.native import build; print(*build.choose('auto', dtype='float32', backend='cpu'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("matmul no native convolution (the compiled library can't be loaded: ")
    assert f"{tmp_path}/fer_jax/native/native-" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_a_user_without_a_home_or_a_cache_is_told_so(compiler, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "~")  # for pathlib this is no home folder
    with pytest.raises(build.Unavailable, match=r"no home folder; .* XDG_CACHE_HOME"):
        build.compiled()


def test_the_choice_is_the_fastest_that_there_is(monkeypatch):
    assert build.choose("auto", dtype="bfloat16", backend="gpu") == ("lax", "")
    assert build.choose("auto", dtype="bfloat16", backend="tpu") == ("lax", "")
    assert build.choose("lax", dtype="float32", backend="cpu") == ("lax", "")
    assert build.choose("matmul", dtype="float32", backend="cpu") == ("matmul", "")
    with pytest.raises(
        UserError, match=r"config\.model\.conv is native, which can't be used: it is for CPUs, not for gpu"
    ):
        build.choose("native", dtype="float32", backend="gpu")


AVX2 = {"avx2", "fma"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}


@pytest.mark.parametrize(
    ("flags", "dtypes", "last"),
    [
        ({"neon"}, (), None),
        ({"avx2"}, (), None),
        (AVX2, ("float32",), "fma"),
        (AVX512, ("float32",), "avx512dq"),
        (AVX512 | {"avx512_bf16"}, ("float32", "bfloat16"), "avx512bf16"),
        (AVX2 | {"avx512f", "avx512_bf16"}, ("float32",), "fma"),
    ],
)
def test_the_library_is_for_what_the_processor_has(monkeypatch, flags, dtypes, last):
    monkeypatch.setattr(machine, "processor_flags", lambda: flags)
    assert build.dtypes() == dtypes
    assert build.instructions()[-1:] == ((last,) if last else ())
    if "bfloat16" not in dtypes:
        # There is no message about a dtype that this processor can't compute in.
        assert build.choose("auto", dtype="bfloat16", backend="cpu") == ("matmul", "")
        with pytest.raises(UserError, match="it doesn't compute in bfloat16 on this processor"):
            build.choose("native", dtype="bfloat16", backend="cpu")


def test_processors_of_two_kinds_that_share_a_cache_have_a_library_each(tmp_path, compiler, monkeypatch):
    libraries = set()
    for flags in (AVX2, AVX512):
        monkeypatch.setattr(machine, "processor_flags", lambda flags=flags: flags)
        libraries.add(build.compiled(tmp_path / "cache"))
    assert len(libraries) == 2


@needs_compiler
def test_where_it_can_be_compiled_it_is_chosen_and_else_the_cost_is_said(tmp_path):
    program = "from fer_jax.native import build; print(*build.choose('auto', dtype='float32', backend='cpu'))"

    def choose(**environment: str) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "CXX"} | environment
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert choose() == "native"
    assert choose(CXX="/nowhere/c++", XDG_CACHE_HOME=str(tmp_path)) == (
        "matmul no native convolution (no C++ compiler: $CXX is /nowhere/c++, which is not there): "
        f"a step takes {build._COST} as long"
    )
