"""Predicts the time of a training step of ResNet-50 on many devices, from published figures and stated assumptions.

`python -m scripts.benchmark scaling` prints the assumptions and the predictions, as tables in Markdown; `--measure`
instead compares the method of prediction with one and two processes on this machine, on one core each.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import socket
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from fer_jax import parallel
from fer_jax.data.dataset import IMAGE_SHAPE
from fer_jax.models import flops
from fer_jax.system import processes
from scripts.benchmark.peers import ours

# Assumptions that no data sheet gives.
ATTAINED = 0.5  # the share of the peak rates of arithmetic and of memory that a kernel attains
KERNEL_SECONDS = 3e-6  # the least time of a kernel, from its launch to the next one's
KERNELS_PER_NORM = 8  # of a convolution and its batch norm: three products, and passes over their results
MEMORY_PASSES = 7  # how often a step writes or reads the output of a convolution or a norm
OPTIMIZER_PASSES = 7  # Adam reads gradient, parameter and two moments, and writes the latter three
HOP_SECONDS = 5e-6  # the time of a message from one device to another, however small


@dataclasses.dataclass(frozen=True)
class Device:
    """peak: FLOP/s; memory: bytes/s; rings: (number of devices, bytes/s that a device sends) of each network that an
    all-reduce runs over, one after the other.
    """

    name: str
    peak: float
    memory: float
    rings: tuple[tuple[int, float], ...]


def h100(nodes: int, per_node: int) -> Device:
    # NVLink 900 GB/s for both directions together, memory 3.35 TB/s: https://www.nvidia.com/en-us/data-center/h100/
    # One 400 Gb/s network card per GPU: https://docs.nvidia.com/dgx/dgxh100-user-guide/introduction-to-dgxh100.html
    name, rings = f"{nodes * per_node} H100", ((per_node, 450e9), (nodes, 50e9))
    return Device(name, flops.PEAKS["NVIDIA H100 80GB HBM3"], 3.35e12, tuple(ring for ring in rings if ring[0] > 1))


def v5e(side: int) -> Device:
    # 819 GB/s of memory, 1,600 Gb/s over four links, a torus of 16x16: https://cloud.google.com/tpu/docs/v5e
    # The links' rate is taken to be for both directions together: 25 GB/s per link and direction, two links per axis.
    return Device(f"{side * side} TPU v5e", flops.PEAKS["TPU v5 lite"], 819e9, 2 * ((side, 50e9),) if side > 1 else ())


SYSTEMS = (h100(1, 1), h100(1, 8), h100(8, 8), v5e(1), v5e(16))


@dataclasses.dataclass(frozen=True)
class Network:
    """flops: those of training on an image; activations: the values per image that convolutions and norms write."""

    flops: int
    activations: int
    parameters: int
    statistics: int
    norms: int


def describe_network(model_config: dict | None = None) -> Network:
    """Traces the network of configs/resnet50.py with the changes in `model_config`, and returns its figures."""
    model = ours.make_network({"model": model_config or {}})
    image = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), jnp.float32)

    def run(image):
        return model.init_with_output(jax.random.key(0), image, train=False, capture_intermediates=True, mutable=True)

    _, variables = jax.eval_shape(run, image)
    outputs = jax.tree_util.tree_leaves_with_path(variables["intermediates"])
    written = [leaf.size for path, leaf in outputs if re.search("conv|norm", jax.tree_util.keystr(path), re.IGNORECASE)]
    statistics_of_norms = jax.tree.leaves(variables["batch_stats"])
    return Network(
        flops=flops.training_flops(model, IMAGE_SHAPE),
        activations=sum(written),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        statistics=sum(leaf.size for leaf in statistics_of_norms),
        norms=len(statistics_of_norms) // 2,
    )


def device_seconds(network: Network, device: Device, batch: int) -> float:
    """Returns a step's seconds on one device: the longest of arithmetic, memory and kernels, taken to overlap."""
    arithmetic = network.flops * batch / (device.peak * ATTAINED)
    moved = 2 * MEMORY_PASSES * network.activations * batch + 4 * OPTIMIZER_PASSES * network.parameters
    return max(arithmetic, moved / (device.memory * ATTAINED), KERNELS_PER_NORM * network.norms * KERNEL_SECONDS)


def all_reduce_seconds(size: float, device: Device) -> float:
    """Returns the seconds to sum `size` bytes over all devices, ring by ring, each with what the previous one left.

    A ring of n sends 2 (n-1)/n of its bytes (Patarasuk & Yuan 2009, https://doi.org/10.1016/j.jpdc.2008.09.002). Small
    messages go up and down a tree instead, and each hop takes HOP_SECONDS.
    """
    seconds = 0.0
    for members, bandwidth in device.rings:
        seconds += 2 * (members - 1) / members * size / bandwidth + 2 * math.ceil(math.log2(members)) * HOP_SECONDS
        size /= members
    return seconds


def step_seconds(network: Network, device: Device, batch: int, *, sync: bool, gradient_bytes: int) -> float:
    """Returns the seconds of a step: a device's work plus its waiting for others; nothing is taken to overlap.

    sync: batch statistics are over all devices, summed norm by norm forward and backward; otherwise they are summed
    together with the gradients, whose values take `gradient_bytes` each.
    """
    seconds = device_seconds(network, device, batch)
    if not device.rings:
        return seconds
    message = gradient_bytes * network.parameters + (0 if sync else 4 * network.statistics)
    seconds += all_reduce_seconds(message, device)
    if sync:
        seconds += 2 * network.norms * all_reduce_seconds(4 * network.statistics / network.norms, device)
    return seconds


WAYS = {
    "own statistics": {"sync": False, "gradient_bytes": 4},
    "synchronised": {"sync": True, "gradient_bytes": 4},
    "own, bfloat16 gradients": {"sync": False, "gradient_bytes": 2},
}


def predict(network: Network) -> str:
    """Returns a table: for each system and batch per device, milliseconds, images/s and efficiency of each way."""
    lines = ["| devices | batch each | " + " | ".join(f"{way}: ms | images/s | efficiency" for way in WAYS) + " |"]
    lines.append("|---|---:|" + "---:|---:|---:|" * len(WAYS))
    for device in SYSTEMS:
        number = math.prod(members for members, _ in device.rings)
        for batch in (64, 256, 1024):
            cells = []
            for way in WAYS.values():
                seconds = step_seconds(network, device, batch, **way)
                efficiency = device_seconds(network, device, batch) / seconds
                cells.append(f"{seconds * 1e3:.2f} | {number * batch / seconds:,.0f} | {efficiency:.0%}")
            lines.append(f"| {device.name} | {batch} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def assumptions(network: Network) -> str:
    size = 4 * (network.parameters + network.statistics)
    return "\n".join(
        [
            f"- The network: {network.flops / 1e9:.2f} GFLOP to train on an image, {network.activations / 1e6:.2f} "
            f"million activations an image, {network.parameters / 1e6:.1f} million parameters, {network.norms} norms.",
            f"- A kernel attains {ATTAINED:.0%} of the peak of arithmetic (bfloat16) or of memory, whichever it needs "
            f"longer for, and takes {KERNEL_SECONDS * 1e6:.0f} us at least; there are {KERNELS_PER_NORM} a norm.",
            f"- Activations (bfloat16) pass through memory {MEMORY_PASSES} times, the parameters' values "
            f"{OPTIMIZER_PASSES} times in float32 (Adam).",
            f"- All-reduces of gradients and statistics together: {size / 1e6:.0f} MB in float32; a hop takes "
            f"{HOP_SECONDS * 1e6:.0f} us; nothing overlaps with the gradients' computation.",
            "- Synchronised statistics: two small all-reduces for each norm.",
            *(
                f"- {device.name}: {device.peak / 1e12:.0f} TFLOP/s, {device.memory / 1e12:.2f} TB/s"
                + "".join(f", a ring of {members} at {speed / 1e9:.0f} GB/s" for members, speed in device.rings)
                for device in SYSTEMS
            ),
        ]
    )


def work(spec: dict) -> None:
    """Runs as a process of `measure`: prints the seconds of its steps and of the all-reduces in them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[spec["process_index"]]})
    if spec["process_count"] > 1:
        processes.initialize()
    mesh = parallel.make_mesh()
    whole = PartitionSpec()
    add = jax.jit(
        jax.shard_map(
            lambda x: jax.lax.psum(x, parallel.AXIS_NAME), mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False
        )
    )

    def median(function) -> float:
        seconds = []
        for _ in range(spec["rounds"] + 2):
            started = time.perf_counter()
            jax.block_until_ready(function())
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[2:])

    def step_seconds(sync: bool) -> float:
        return median(ours.make_step(spec | {"model": spec["model"] | {"sync_batch_norm": sync}}, mesh)[0])

    answers = {"own": step_seconds(sync=False)}
    if spec["process_count"] > 1:
        answers["synchronised"] = step_seconds(sync=True)
        network = describe_network(spec["model"])
        for name, size in (("gradients", network.parameters), ("statistics", network.statistics // network.norms)):
            values = parallel.replicate(np.ones(size, np.float32), mesh)
            answers[name] = median(lambda values=values: add(values))
    print(json.dumps(answers))


def measure(batch: int, rounds: int, model: dict) -> str:
    """Predicts a step of two processes from measurements of one and of all-reduces; returns the result in words."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"

    def run(process_count: int) -> dict[str, float]:
        children = []
        for process_index in range(process_count):
            spec = {
                "process_index": process_index,
                "process_count": process_count,
                "batch": batch,
                "image_size": 48,
                "rounds": rounds,
                "model": model,
            }
            environment = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(process_count)}
            environment |= {"JAX_PROCESS_ID": str(process_index)}
            command = [sys.executable, "-m", "scripts.benchmark", "scaling", "--worker", json.dumps(spec)]
            children.append(
                subprocess.Popen(
                    command,
                    env=os.environ | environment | {"JAX_PROCESS_ID": str(process_index)},
                    stdout=subprocess.PIPE,
                )
            )
        answers = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
        return {key: max(answer[key] for answer in answers) for key in answers[0]}

    one, two = run(1), run(2)
    norms = describe_network(model).norms
    # Gloo reduces one array after the other, each in at least the time of a small message. The arrays are the kernels,
    # scales and biases, the head's two, and the statistics, beside them or norm by norm, forward and backward.
    messages = (3 * norms + 2) + 2 * norms
    seconds = one["own"] + two["gradients"] + messages * two["statistics"]
    lines = [
        f"One process on one core, batch {batch}: {one['own'] * 1e3:.0f} ms a step.",
        f"Between two processes, an all-reduce of the gradients as one array: {two['gradients'] * 1e3:.0f} ms; of one "
        f"norm's statistics: {two['statistics'] * 1e3:.2f} ms, as of each of the {messages} arrays that are summed.",
    ]
    for way in ("own", "synchronised"):
        lines.append(
            f"Two processes on two cores, batch {batch} each, {way} statistics: predicted {seconds * 1e3:.0f} ms "
            f"(efficiency {one['own'] / seconds:.0%}), measured {two[way] * 1e3:.0f} ms "
            f"(efficiency {one['own'] / two[way]:.0%})."
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="one and two processes here, against the prediction")
    parser.add_argument("--batch", type=int, default=32, help="of each process, for --measure")
    parser.add_argument("--rounds", type=int, default=5, help="steps of --measure that are counted")
    parser.add_argument("--model", type=json.loads, default={}, help="config.model's changes, for --measure, in JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        work(json.loads(arguments.worker))
    elif arguments.measure:
        print(measure(arguments.batch, arguments.rounds, arguments.model))
    else:
        network = describe_network()
        print(f"{assumptions(network)}\n\n{predict(network)}")
