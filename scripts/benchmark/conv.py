"""Times the convolutions of the benchmark's networks alone, forward, dx and dW, with every implementation.

Rates count useful work only. The native convolution's are also given as shares of the processor's peak, which is
measured with multiply-adds in registers.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.errors import UserError
from fer_jax.models import conv
from fer_jax.native import build
from scripts.benchmark.peers import NUM_THREADS

# (image size, channels in, channels out, window, stride, batch)
SHAPES = [
    (48, 1, 64, 7, 2, 64),
    (48, 1, 64, 3, 1, 64),
    (24, 64, 64, 3, 1, 64),
    (12, 128, 128, 3, 1, 64),
    (6, 256, 256, 3, 1, 64),
    (3, 512, 512, 3, 1, 64),
    (24, 64, 256, 1, 1, 64),
    (24, 256, 64, 1, 1, 64),
    (6, 1024, 256, 1, 1, 64),
    (24, 128, 128, 3, 2, 64),
    (24, 256, 512, 1, 2, 64),
    (20, 64, 64, 3, 1, 128),
    (10, 128, 128, 3, 1, 128),
    (5, 256, 256, 3, 1, 128),
    (20, 64, 128, 3, 2, 128),
]
PASSES = ("forward", "dx", "dW")


def passes(name: str, window: int, stride: int) -> list:
    """Returns the compiled functions of (x, kernel, dy) that compute forward, dx and dW."""
    pad = ((window // 2, window // 2),) * 2
    numbers = ("NHWC", "HWIO", "NHWC")

    def forward(x, kernel, dy=None):
        return conv.resolve(name)(x, kernel, (stride, stride), pad, dimension_numbers=numbers)

    return [
        jax.jit(forward),
        jax.jit(lambda x, kernel, dy: jax.vjp(lambda x: forward(x, kernel), x)[1](dy)[0]),
        jax.jit(lambda x, kernel, dy: jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](dy)[0]),
    ]


def peaks() -> dict[str, float]:
    """Returns {dtype: the peak GFLOP/s of multiply-adds on all threads}, for the dtypes of the native code.

    Without a compiler it prints so and returns an empty dict.
    """
    with tempfile.TemporaryDirectory() as folder:
        program, source = os.path.join(folder, "peak"), pathlib.Path(__file__).with_name("peak.cc")
        try:
            build.compile_sources([source], program, "-pthread")
        except build.Unavailable as error:
            print(f"The peak is not measured: {error}")
            return {}
        printed = subprocess.run([program, str(NUM_THREADS)], capture_output=True, text=True, check=True).stdout
    return {dtype: float(rate) for dtype, rate in map(str.split, printed.splitlines())}


def measure(dtype: str, rounds: int, shapes=tuple(SHAPES)) -> list[dict]:
    """Returns, for each shape, {way: (GFLOP/s of forward, of dx, of dW)}: medians of `rounds` rounds in turn."""
    ways = ["matmul", "lax"]
    try:
        build.choose("native", dtype=dtype, backend="cpu")
        ways.insert(0, "native")
    except UserError as error:
        print(error)
    results = []
    for size, channels, out, window, stride, batch in shapes:
        generator = np.random.default_rng(0)
        x = jnp.asarray(generator.random((batch, size, size, channels)), dtype)
        kernel = jnp.asarray(generator.random((window, window, channels, out)), dtype)
        functions = {way: passes(way, window, stride) for way in ways}
        dy = jnp.ones_like(functions["lax"][0](x, kernel))
        flops = 2 * dy.size * window**2 * channels
        seconds = {(way, i): [] for way in ways for i in range(3)}
        for number in range(rounds + 1):
            for way, i in seconds:
                start = time.perf_counter()
                jax.block_until_ready(functions[way][i](x, kernel, dy))
                if number:  # the first compiles
                    seconds[way, i].append(time.perf_counter() - start)
        rates = {way: [flops / statistics.median(seconds[way, i]) / 1e9 for i in range(len(PASSES))] for way in ways}
        results.append({"shape": [size, channels, out, window, stride, batch], "gflops": rates})
    return results


def table(results: list[dict], peak: float | None = None) -> str:
    """Returns the results as a table in Markdown; peak: GFLOP/s, to add the native rates' shares of it."""
    ways = list(results[0]["gflops"])
    shares = ["of the peak"] if peak else []
    lines = [f"| image, channels, window, stride, batch | {' | '.join([ways[0], *shares, *ways[1:]])} |"]
    lines.append("|---|" + "---:|" * (len(ways) + len(shares)))
    for result in results:
        size, channels, out, window, stride, batch = result["shape"]
        cells = [" / ".join(f"{rate:.0f}" for rate in result["gflops"][way]) for way in ways]
        if peak:
            cells.insert(1, " / ".join(f"{rate / peak:.0%}" for rate in result["gflops"][ways[0]]))
        lines.append(f"| {size} px, {channels} to {out}, {window}x{window}, {stride}, {batch} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark conv", description=__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args(argv)
    peak = peaks().get(arguments.dtype) if build.instructions() else None
    print(f"{arguments.dtype}, GFLOP/s of forward / dx / dW, medians in turn; the peak: {peak or 'not known'}\n")
    results = measure(arguments.dtype, arguments.rounds)
    print(table(results, peak if "native" in results[0]["gflops"] else None))
