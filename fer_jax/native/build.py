"""Compiles the C++ code of this package for this machine, once for all runs of a user, and registers it with XLA."""

import concurrent.futures
import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator

import jax

from fer_jax import machine
from fer_jax.errors import UserError

_FOLDER = pathlib.Path(__file__).parent
_SOURCES = tuple(_FOLDER / f"{name}.cc" for name in ("conv", "conv_kernel_gradient", "norm", "pool"))
_FILES = (_FOLDER / "common.h", _FOLDER / "conv.h", *_SOURCES)
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-w")
# The library is compiled for the first of these sets that the processor has in full, in the compiler's names.
# -march=native isn't used: machines of several kinds may share a cache, and the library's name depends on the flags.
INSTRUCTIONS = (
    ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512bf16"),
    ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq"),
    ("avx2", "fma"),
)
_HANDLERS = (
    "fer_jax_conv",
    "fer_jax_conv_input_gradient",
    "fer_jax_conv_kernel_gradient",
    "fer_jax_conv_pack",
    "fer_jax_conv_activate",
    "fer_jax_moments",
    "fer_jax_gradient_sums",
    "fer_jax_max_pool",
    "fer_jax_max_pool_gradient",
)
# With products over patches, for a network of three stages at 40 pixels; docs/performance.md has the measurement.
_COST = "up to 1.7 times"


class Unavailable(Exception):
    """The native convolution can't be used here; the message says why, in one line."""


def choose(conv: str, *, dtype: str, backend: str) -> tuple[str, str]:
    """Returns 'native', 'matmul' or 'lax' for a `config.model.conv`, and a reason if it isn't the fastest.

    dtype: dtype of the computation. Compiles the native convolution if it is chosen and not compiled yet. Raises
    UserError if `conv` is 'native' and it can't be used.
    """
    if conv not in ("auto", "native"):
        return conv, ""
    if backend != "cpu":
        reason = f"it is for CPUs, not for {backend}"
    elif dtype not in dtypes():
        reason = f"it doesn't compute in {dtype} on this processor"
    else:
        try:
            load()
            return "native", ""
        except Unavailable as error:
            reason = str(error)
    if conv == "native":
        raise UserError(f"config.model.conv is native, which can't be used: {reason}; auto takes what can")
    # There is no cost to report if the native convolution doesn't support this backend or dtype.
    is_slower = backend == "cpu" and dtype in dtypes()
    cost = f"no native convolution ({reason}): a step takes {_COST} as long" if is_slower else ""
    return ("matmul" if backend == "cpu" else "lax"), cost


def instructions() -> tuple[str, ...]:
    """Returns the instruction sets for which the library is compiled on this processor, or () if it can't be."""
    flags = machine.processor_flags()
    has_all = (names for names in INSTRUCTIONS if flags.issuperset(map(name_in_linux, names)))
    return next(has_all, ())


def name_in_linux(name: str) -> str:
    """Returns the /proc/cpuinfo name of an instruction set that the compiler calls `name`."""
    return {"avx512bf16": "avx512_bf16"}.get(name, name)


def dtypes() -> tuple[str, ...]:
    """Returns the dtypes in which the library computes on this processor."""
    names = instructions()
    return ("float32",) * bool(names) + ("bfloat16",) * ("avx512bf16" in names)


def load() -> None:
    """Compiles the library if the user's cache has none for this machine, and registers it with XLA.

    Raises Unavailable where the processor, the compiler, the cache or the system's loader doesn't allow it.
    """
    if reason := _load_once():
        raise Unavailable(reason)


@functools.cache
def _load_once() -> str | None:
    # Failures are cached too, since a failing compiler takes as long at every attempt.
    try:
        if not instructions():
            raise Unavailable("this processor has no AVX2")
        library = ctypes.CDLL(os.fspath(compiled()))
    except Unavailable as error:
        return str(error)
    except OSError as error:
        # The cache may forbid execution, or may be shared with a system that has another C library.
        return f"the compiled library can't be loaded: {error}"
    for name in (f"{handler}_{dtype}" for handler in _HANDLERS for dtype in dtypes()):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return None


def compiled(cache: pathlib.Path | None = None) -> pathlib.Path:
    """Returns the cached library for these sources, compiler and flags, and compiles it if it is missing or damaged.

    cache: a folder; fer_jax/native in the user's cache if None. Raises Unavailable.
    """
    try:
        cache = machine.user_cache("native") if cache is None else cache
    except OSError as error:
        raise Unavailable(str(error)) from None
    # Another compiler may round differently, and another JAX may have different headers.
    version = _run([*find_compiler(), "--version"])
    parts = [*(path.read_text() for path in _FILES), version, *_flags(), jax.__version__]
    if any(flag.endswith("=native") for flag in _flags()):
        # The flag means a different processor on each machine.
        parts += sorted(machine.processor_flags())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    library, digest = cache / f"native-{key}.so", cache / f"native-{key}.sha256"
    try:
        # This is checked before locking, which needs a writable cache.
        if _is_sound(library, digest):
            return library
        cache.mkdir(parents=True, exist_ok=True)
        with _only_one(cache):
            if not _is_sound(library, digest):
                # The library is moved into place once complete, so that a killed process leaves no partial one.
                with tempfile.TemporaryDirectory(dir=cache) as folder:
                    made = pathlib.Path(folder) / library.name
                    compile_sources(_SOURCES, made, "-shared", "-fPIC")
                    # The digest is written first: a library that doesn't match it is compiled again.
                    digest.write_text(_digest(made))
                    made.replace(library)
    except OSError as error:
        raise Unavailable(f"{error.filename or cache}: {error.strerror or error}") from error
    return library


def compile_sources(sources: Iterable[pathlib.Path], made: str | os.PathLike, *extra: str) -> None:
    """Compiles sources to `made` for this processor, with the library's flags and `extra`; raises Unavailable."""
    command = [*find_compiler(), *_flags(), *extra]
    headers = (f"-I{jax.ffi.include_dir()}", f"-I{_FOLDER}")
    # All files are compiled at once, since the user waits for the result.
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor() as executor:
        objects = {source: os.path.join(folder, f"{source.stem}.o") for source in sources}
        commands = ([*command, *headers, "-c", os.fspath(source), "-o", to] for source, to in objects.items())
        for _ in executor.map(_run, commands):  # raises the first failure
            pass
        _run([*command, *objects.values(), "-o", os.fspath(made)])


def find_compiler() -> list[str]:
    """Returns the command of the compiler, $CXX or the first of _COMPILERS that is installed; raises Unavailable."""
    if command := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(command[0]) is None:
            raise Unavailable(f"no C++ compiler: $CXX is {command[0]}, which is not there")
        return command
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise Unavailable(f"no C++ compiler: none of {', '.join(_COMPILERS)} is there")
    return [compiler]


def _flags() -> list[str]:
    return [*_FLAGS, *(f"-m{name}" for name in instructions()), *os.environ.get("CXXFLAGS", "").split()]


def _is_sound(library: pathlib.Path, digest: pathlib.Path) -> bool:
    # Loading a damaged library would execute whatever it contains.
    return library.exists() and digest.exists() and digest.read_bytes() == _digest(library).encode()


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def _only_one(cache: pathlib.Path) -> Iterator[None]:
    """Enters a context in which no other process of this user compiles."""
    import fcntl  # missing on Windows, where the native code isn't used

    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise Unavailable(f"{command[0]} failed: {next((line for line in lines if 'error' in line), lines[0])[:200]}")
    return done.stdout
