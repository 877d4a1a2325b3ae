"""Times each convolution of ResNet-50 alone, forward, dx and dW, by every way that there is of computing it."""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.errors import UserError
from fer_jax.models import conv
from fer_jax.native import build

# (image size, channels in, channels out, window, stride)
SHAPES = [
    (48, 1, 64, 7, 2),
    (24, 64, 64, 3, 1),
    (12, 128, 128, 3, 1),
    (6, 256, 256, 3, 1),
    (3, 512, 512, 3, 1),
    (24, 64, 256, 1, 1),
    (24, 256, 64, 1, 1),
    (6, 1024, 256, 1, 1),
    (24, 128, 128, 3, 2),
    (24, 256, 512, 1, 2),
]
PASSES = ("forward", "dx", "dW")


def passes(name: str, window: int, stride: int) -> list:
    """Returns the compiled functions of (x, kernel, dy) that are forward, dx and dW."""
    pad = ((window // 2, window // 2),) * 2
    numbers = ("NHWC", "HWIO", "NHWC")

    def forward(x, kernel, dy=None):
        return conv.resolve(name, "cpu")(x, kernel, (stride, stride), pad, dimension_numbers=numbers)

    return [
        jax.jit(forward),
        jax.jit(lambda x, kernel, dy: jax.vjp(lambda x: forward(x, kernel), x)[1](dy)[0]),
        jax.jit(lambda x, kernel, dy: jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](dy)[0]),
    ]


def measure(batch: int, dtype: str, rounds: int, shapes=tuple(SHAPES)) -> list[dict]:
    """Returns, for each shape, {way: (GFLOP/s of forward, of dx, of dW)}: medians of `rounds` rounds in turn."""
    ways = ["matmul", "lax"]
    try:
        build.choose("native", dtype=dtype, backend="cpu")
        ways.insert(0, "native")
    except UserError as error:
        print(error)
    results = []
    for size, channels, out, window, stride in shapes:
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
        results.append({"shape": [size, channels, out, window, stride], "gflops": rates})
    return results


def table(results: list[dict]) -> str:
    """Returns the results as a table in Markdown."""
    ways = list(results[0]["gflops"])
    lines = [f"| image, channels, window, stride | {' | '.join(ways)} |", "|---|" + "---:|" * len(ways)]
    for result in results:
        size, channels, out, window, stride = result["shape"]
        rates = [" / ".join(f"{rate:.0f}" for rate in result["gflops"][way]) for way in ways]
        lines.append(f"| {size} px, {channels} to {out}, {window}x{window}, {stride} | {' | '.join(rates)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark conv", description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args(argv)
    print("GFLOP/s of forward / dx / dW, medians in turn\n")
    print(table(measure(arguments.batch, arguments.dtype, arguments.rounds)))
