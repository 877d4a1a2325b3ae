"""Measures where the time of a training step goes, by kind of operation: python -m scripts.benchmark trace --net NET

XLA traces some steps, and the operations of the trace are looked up in the compiled program. The figures are thread
time. On two cores they add up to less than twice the step's time, since they include neither the native code's helper
threads nor waiting.
"""

import argparse
import collections
import gzip
import json
import os
import pathlib
import re
import tempfile
import time

from scripts.benchmark.peers import NETS, SIZES, make_specs

STEPS = 5
# The first pattern that matches an operation's target or name determines its kind.
KINDS = [
    (r"fer_jax_conv_kernel", "convolution: dW"),
    (r"fer_jax_conv_input", "convolution: dx"),
    (r"fer_jax_conv", "convolution: forward"),
    (r"fer_jax_moments|fer_jax_gradient_sums|(BatchNorm|_norm).*reduce_sum", "batch norm: sums"),
    (r"BatchNorm|_norm|ConvNorm_\d+/\w+$|jvp\(ResNet\)+/(.*/)?add$", "batch norm, ReLU, shortcut: applied"),
    (r"transpose\(jvp.*(Conv_|_conv)", "convolution: dW"),
    (r"jvp.*(Conv_|_conv)", "convolution: forward"),
    (r"fer_jax_max_pool|jvp\(ResNet\)+/(max|jit|eq|pad|slice|stack|concatenate|and|not|broadcast)", "max pooling"),
    (r"vmap|augment|threefry|uniform", "augmentation"),
    (r"bias_correction|repeated\)/(mul|add|sqrt|div|integer_pow|sub)$", "optimizer"),
]


def kind_of(name: str) -> str:
    """Returns the kind of an operation; name: its custom call's target, or the name that JAX gave it."""
    return next((kind for pattern, kind in KINDS if re.search(pattern, name)), "other")


def names_of_operations(program: str) -> dict[str, str]:
    """Returns {operation: its name for `kind_of`}; program: the text of a compiled program, as XLA writes it."""
    names, inner = {}, collections.defaultdict(list)
    computation = ""
    for line in program.splitlines():
        if opened := re.match(r"(?:ENTRY )?%(\S+) \(", line):
            computation = opened[1]
        if not (operation := re.match(r"\s+(?:ROOT )?%(\S+) = ", line)):
            continue
        target = re.search(r'custom_call_target="([^"]*)"', line) or re.search(r'op_name="([^"]*)"', line)
        if target:
            inner[computation].append(target[1])
        called = re.search(r"calls=%([^\s,]+)", line)
        names[operation[1]] = target[1] if target else "".join(inner[called[1]][-1:]) if called else ""
    return names


def milliseconds_by_kind(events: list[dict], names: dict[str, str], steps: int) -> dict[str, float]:
    """Returns {kind: ms per step, summed over threads}, the largest first; events: those of a trace."""
    total = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and (operation := event.get("args", {}).get("hlo_op")) in names:
            total[kind_of(names[operation])] += event["dur"] / 1e3 / steps
    return dict(total.most_common())


def measure(spec: dict) -> tuple[float, dict[str, float]]:
    """Returns the ms of a step without tracing, and `milliseconds_by_kind` with it; spec: see `peers.ours`."""
    with tempfile.TemporaryDirectory() as folder:
        # This must precede JAX's first look at the devices, at which XLA reads its flags.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder} --xla_dump_hlo_as_text"
        import jax

        from scripts.benchmark.peers import ours

        run, _ = ours.make(spec)
        for _ in range(2):
            ours.wait(run())
        started = time.perf_counter()
        for _ in range(STEPS):
            ours.wait(run())
        milliseconds = (time.perf_counter() - started) * 1e3 / STEPS
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                ours.wait(run())
        # The step is by far the largest of the programs.
        programs = pathlib.Path(folder).glob("*after_optimizations.txt")
        names = names_of_operations(max(programs, key=lambda path: path.stat().st_size).read_text())
        (trace,) = pathlib.Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return milliseconds, milliseconds_by_kind(events, names, STEPS)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark trace", description=__doc__)
    parser.add_argument("--net", choices=NETS, default="resnet50-7/2/pool")
    parser.add_argument("--peer", choices=["ours", "matmul", "flax"], default="ours")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    arguments = parser.parse_args(argv)
    size, batch = SIZES[arguments.net]
    chosen = {"peers": [arguments.peer], "dtypes": [arguments.dtype], "net": arguments.net}
    (spec,) = make_specs("step", batch=batch, image_size=size, **chosen).values()
    step, kinds = measure(spec)
    print(f"{arguments.net}, {arguments.dtype}, batch {batch}: a step takes {step:.0f} ms; of the threads' time\n")
    for kind, milliseconds in kinds.items():
        print(f"{milliseconds:8.1f} ms  {milliseconds / sum(kinds.values()):6.1%}  {kind}")
