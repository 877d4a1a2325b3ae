"""Runs the tests of the native code under AddressSanitizer and UndefinedBehaviorSanitizer.

`python -m scripts.reliability sanitizers` compiles the library with each (GCC's or clang's runtime must be installed),
preloads its runtime and runs tests/native and the tests of pooling. A sanitizer's silence proves nothing unless it is
able to report errors, so each must first catch a faulty program of the kind that it is meant to find.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

from fer_jax.native import build

TESTS = ("tests/native/test_conv.py", "tests/native/test_norm.py", "tests/models/test_pool.py")
# Name: (runtime, the body of a faulty program, a part of the expected report).
SANITIZERS = {
    "address": (
        "libasan.so",
        "int* x = new int[2]; volatile int i = count + 1; return x[i];",
        "heap-buffer-overflow",
    ),
    "undefined": ("libubsan.so", "volatile int x = 2147483647; x = x + count; return 0;", "signed integer overflow"),
}


def flags_of(name: str) -> str:
    return f"-fsanitize={name} -fno-sanitize-recover=all -g"


def catches(name: str) -> bool:
    """Returns whether a sanitizer reports and ends a faulty program of the kind that it is meant to find."""
    _, body, message = SANITIZERS[name]
    with tempfile.TemporaryDirectory() as folder:
        source, program = pathlib.Path(folder, "wrong.cc"), pathlib.Path(folder, "wrong")
        source.write_text(f"int main(int count, char**) {{ {body} }}\n")
        build.compile_sources([source], program, *flags_of(name).split())
        done = subprocess.run([program], capture_output=True, text=True)
    return done.returncode != 0 and message in done.stderr


def run_tests(name: str) -> int:
    """Runs the tests with the library compiled for a sanitizer; returns pytest's status."""
    # The runtime looks up the functions that it intercepts in the C++ library, which Python itself doesn't load.
    preloaded = [_find_library(library) for library in (SANITIZERS[name][0], "libstdc++.so.6")]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "CXXFLAGS": flags_of(name),
            "LD_PRELOAD": " ".join(preloaded),
            # Leaks are not reported, because Python and XLA keep memory until the end.
            "ASAN_OPTIONS": "detect_leaks=0",
            "XDG_CACHE_HOME": cache,
        }
        # Where the library can't be loaded the tests are skipped, as if nothing had been found.
        load = [sys.executable, "-c", "from fer_jax.native import build; build.load()"]
        if status := subprocess.run(load, env=environment).returncode:
            return status
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-o", "addopts=", *TESTS]
        return subprocess.run(command, env=environment).returncode


def _find_library(name: str) -> str:
    command = [*build.find_compiler(), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(_: list[str]) -> None:
    for name in SANITIZERS:
        if not catches(name):
            sys.exit(f"{name}: it doesn't catch a wrong program here")
        print(f"{name}: it catches a wrong program; now {' '.join(TESTS)}", flush=True)
        if run_tests(name):
            sys.exit(f"{name}: the tests failed")
    print("Both found nothing.")
