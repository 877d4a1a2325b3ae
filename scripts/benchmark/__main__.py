"""Measures the claims of the README: python -m scripts.benchmark PART [--help]

step        a training step: forward, backward and Adam, against other libraries on the same networks
inference   from images to logits on the host, against the same libraries and ONNX Runtime
augment     a training step against its augmentation alone
pipeline    batches on the host, without a network
calls       training steps one by one and several per call, with the dataset on the host and on the device
end_to_end  an epoch of `python -m fer_jax.main` against the bare step of the same configuration
startup     from the command to the first trained step, and to a prediction, without and with cached compiled programs
loop        the share of an epoch that the loop spends in steps, on a simulated device with steps of 1 ms
conv        each convolution of these networks alone, with every implementation, against the processor's peak
trace       where the time of a training step goes, by kind of operation
csv         reading a FER-2013 csv, against pandas
explain     maps of what a network looked at, compared by the deletion test
memory      the peak memory of an epoch of the command
detect      face detectors on photographs with known faces: found, false, milliseconds
accelerator  the packaged networks on the available accelerator, in 8 minutes: steps, memory, MFU, an epoch, determinism
time_to_accuracy  minutes of training to 60, 65, 68 % on PublicTest, against a PyTorch program with the same recipe
scaling     a prediction of a step on many devices; --measure compares the prediction with two processes

Every contestant is a process of its own (scripts/benchmark/peers), which waits while another has its turn. Contestants
take turns (A B A B ...), and the first round isn't counted. Prints the medians, the spread, and the ratio of each
contestant's seconds to the first one's, round by round, and writes all of it to a JSON file. A contestant that isn't
installed (`pip install -e '.[bench]'`) is named and left out. Run it on a machine that is otherwise idle.
"""

import argparse
import contextlib
import datetime
import functools
import importlib
import itertools
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from fer_jax.system.memory import restart_tuned
from scripts.benchmark import csv
from scripts.benchmark.comparison import PAUSE_SECONDS, compare, measure_in_turn, summarize, table
from scripts.benchmark.peers import NETS, PEERS, SIZES, make_specs
from scripts.benchmark.peers.worker import Worker

# A photograph of 200x200 pixels, with a face.
PHOTOGRAPH = "tests/fixtures/astronaut.jpg"


def benchmark_network(arguments) -> Iterator[dict]:
    chosen = {"peers": arguments.peers, "dtypes": arguments.dtype, "peers_python": arguments.peers_python}
    for net in arguments.net:
        image_size, own_batch = SIZES[net]
        for batch in arguments.batch or [own_batch]:
            yield compare(
                f"{arguments.part}, {net}, {image_size} px, batch {batch}",
                make_specs(arguments.part, batch=batch, net=net, image_size=image_size, **chosen),
                rounds=arguments.rounds,
                calls=max(1, 256 // batch),
                images=batch,
            )


def our_step(batch: int, net: str, dtype: str = "bfloat16") -> dict:
    image_size, _ = SIZES[net]
    specs = make_specs("step", peers=["ours"], dtypes=[dtype], batch=batch, net=net, image_size=image_size)
    return specs[f"ours {dtype}"]


def benchmark_augment(arguments) -> Iterator[dict]:
    for batch in arguments.batch:
        step = our_step(batch, arguments.net[0])
        specs = {"step": step, "augmentation alone": step | {"task": "augment"}}
        yield compare(f"augment, batch {batch}", specs, rounds=arguments.rounds, calls=1, images=batch)


def benchmark_pipeline(arguments) -> Iterator[dict]:
    for batch in arguments.batch:
        spec = {"peer": "ours", "task": "pipeline", "batch": batch}
        specs = {"images": spec | {"indices_only": False}, "indices": spec | {"indices_only": True}}
        calls = 1_024_000 // batch
        yield compare(f"pipeline, batch {batch}", specs, rounds=arguments.rounds, calls=calls, images=batch)


# A multiple of every steps_per_call that is tried.
STEPS = 8


def benchmark_calls(arguments) -> Iterator[dict]:
    for batch in arguments.batch:
        spec = our_step(batch, arguments.net[0]) | {"task": "calls", "steps": STEPS}
        specs = {
            f"{loader}, {number} a call": spec | {"loader": loader, "steps_per_call": number}
            for loader in ("tf.data", "device")
            for number in (1, STEPS)
        }
        title = f"{STEPS} steps of batch {batch}, {arguments.net[0]}"
        yield compare(title, specs, rounds=arguments.rounds, calls=1, images=STEPS * batch)


@contextlib.contextmanager
def user_command(module: str, *words: str, cache: str | None = None) -> Iterator[subprocess.Popen]:
    """Starts a command as a user would, and stops it at the end if it still runs; cache: replaces the user's cache."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    if cache:
        environment["XDG_CACHE_HOME"] = cache
    command = [sys.executable, "-m", module, *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


def training(workdir: pathlib.Path, *options: str, cache: str | None = None):
    """Starts the command that trains (see `user_command`)."""
    return user_command("fer_jax.main", "--config=configs/resnet50.py", f"--workdir={workdir}", *options, cache=cache)


def benchmark_end_to_end(arguments) -> Iterator[dict]:
    """Compares epochs of the command with the bare step, as the mean of the measurements before and after an epoch.

    Each measurement is of 100 steps, which is long enough to reach the pace of an epoch.
    """
    net = [f"--config.model.{key}={value}" for key, value in NETS[arguments.net[0]].items()]
    for batch in arguments.batch:
        title = f"end to end, an epoch, batch {batch}, {arguments.net[0]}"
        # The dtype that the command chooses; the worker resolves it, since that requires a device.
        step = our_step(batch, arguments.net[0], dtype="auto")
        with tempfile.TemporaryDirectory() as folder, Worker(step) as bare:
            folder, epochs, walls = pathlib.Path(folder), [], []
            data = arguments.data or folder / "random.csv"
            if not arguments.data:
                csv.write_random_csv(data)
            options = [f"--config.dataset.path={data}", f"--config.dataset.cache_dir={folder / 'prepared'}", *net]
            steps = [bare.measure(100)]
            for number in range(arguments.rounds):
                print(f"{title}: round {number + 1}", file=sys.stderr)
                started = time.perf_counter()
                workdir = folder / str(number)
                with training(workdir, "--config.num_epochs=1", f"--config.batch_size={batch}", *options) as process:
                    if process.wait():
                        sys.exit(f"{title}: the command ended with status {process.returncode}")
                walls.append(time.perf_counter() - started)
                events = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
                epochs.append(batch / [event for event in events if event["kind"] == "train"][-1]["images_per_second"])
                time.sleep(PAUSE_SECONDS)
                steps.append(bare.measure(100))
        around = [statistics.mean(pair) for pair in itertools.pairwise(steps)]
        figures = summarize({"bare step": around, "end to end": epochs}, images=batch)
        figures["bare step"] |= {"before_and_after": steps, "versions": bare.versions}
        figures["end to end"]["command_seconds"] = walls
        print(f"The whole command: {', '.join(f'{wall:.0f}' for wall in walls)} s", file=sys.stderr)
        yield {"title": title, "rounds": arguments.rounds, "contestants": figures, "left_out": {}}


def benchmark_startup(arguments) -> Iterator[dict]:
    """Times cold starts, with only the native code compiled, and warm ones, with the programs of the start before."""
    with tempfile.TemporaryDirectory() as cache:

        def forget() -> None:
            # The rest of the cache, native code and prepared data, is kept from the first round, which isn't counted.
            shutil.rmtree(pathlib.Path(cache, "fer_jax", "programs"), ignore_errors=True)

        def first_step() -> float:
            with tempfile.TemporaryDirectory() as folder:
                started, metrics = time.perf_counter(), pathlib.Path(folder, "run", "metrics.jsonl")
                options = ("--config.dataset.source=embedded", "--config.log.every_steps=1")
                with training(metrics.parent, *options, cache=cache) as process:
                    while not (metrics.exists() and metrics.stat().st_size):
                        if process.poll() is not None:
                            sys.exit(f"startup: the command ended with status {process.returncode}")
                        time.sleep(0.005)
                    return time.perf_counter() - started

        def prediction() -> float:
            started = time.perf_counter()
            with user_command("fer_jax", "predict", PHOTOGRAPH, cache=cache) as process:
                if process.wait():
                    sys.exit(f"startup: the command ended with status {process.returncode}")
                return time.perf_counter() - started

        def cold(start: Callable[[], float]) -> float:
            forget()
            return start()

        starts = {
            "first step, cold": functools.partial(cold, first_step),
            "first step, warm": first_step,
            "prediction, cold": functools.partial(cold, prediction),
            "prediction, warm": prediction,
        }
        figures = summarize(measure_in_turn(starts, arguments.rounds), images=0)
    yield {"title": "startup", "rounds": arguments.rounds, "contestants": figures, "left_out": {}}


def describe_machine() -> dict:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "processor": (models or [platform.processor() or platform.machine()])[0],
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES"),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


# Name: (the function that measures, default batch sizes (None: each network's own), default number of rounds).
PARTS = {
    "step": (benchmark_network, None, 5),
    "inference": (benchmark_network, [1, 64, 512], 10),
    "augment": (benchmark_augment, [64], 20),
    "pipeline": (benchmark_pipeline, [64, 1024], 5),
    "calls": (benchmark_calls, [64], 5),
    "end_to_end": (benchmark_end_to_end, [64], 1),
    "startup": (benchmark_startup, [], 3),
}


# Modules of this package with a command line of their own.
OTHERS = ("accelerator", "conv", "csv", "detect", "explain", "loop", "memory", "scaling", "time_to_accuracy", "trace")


def main(argv: list[str]) -> None:
    if argv and argv[0] in OTHERS:
        importlib.import_module(f"scripts.benchmark.{argv[0]}").main(argv[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, *OTHERS])
    parser.add_argument("--batch", type=int, nargs="+", help="batch sizes, one after the other")
    parser.add_argument(
        "--net",
        choices=NETS,
        nargs="+",
        default=["resnet50-7/2/pool"],
        help="one after the other, depth and stem's kernel/stride/pool (default: %(default)s); others take the first",
    )
    parser.add_argument("--peers", choices=PEERS, nargs="+", default=list(PEERS), help="of step and inference")
    parser.add_argument("--peers-python", help="interpreter for the other libraries, if they have their own")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, help="those that are counted")
    parser.add_argument("--data", type=pathlib.Path, help="FER-2013 for end_to_end (default: random images)")
    parser.add_argument("--json", type=pathlib.Path, help="default: runs/benchmark/PART-TIME.json")
    arguments = parser.parse_args(argv)
    benchmark, batches, rounds = PARTS[arguments.part]
    arguments.batch, arguments.rounds = arguments.batch or batches, arguments.rounds or rounds

    machine = describe_machine()
    print(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}", flush=True)
    path = arguments.json or pathlib.Path(f"runs/benchmark/{arguments.part}-{time.strftime('%Y%m%d-%H%M%S')}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    comparisons = []
    for comparison in benchmark(arguments):
        comparisons.append(comparison)
        path.write_text(json.dumps({"machine": machine, "part": arguments.part, "comparisons": comparisons}, indent=1))
        print(f"\n{table(comparison)}", flush=True)
    print(f"\n{path}")


if __name__ == "__main__":
    # The command that `startup` and `memory` measure restarts itself, which is part of the measurement.
    if sys.argv[1:2] not in (["startup"], ["memory"]):
        restart_tuned()
    main(sys.argv[1:])
