"""Measures on the available accelerator, all in one go: python -m scripts.benchmark accelerator [--minutes 8]

nets         for each packaged config, at its image size, batch and dtype: a training step and an inference of ours, of
             PyTorch (eager and compiled) and of plain Flax; FLOP/s, their share of the device's peak (MFU), memory
loaders      batches on the host, as images and as indices
calls        training steps with both loaders, one by one and many per call
determinism  two runs of the command with parallel.deterministic, compared by their parameters' digests
epoch        the second epoch of the command with each config, and its share of the bare step's speed

Every contestant is a process of its own, which waits while another has its turn. Contestants start one after the other,
but PyTorch's in parallel with JAX's, since compilers time kernels on the device. Each section gets its share of what is
left of --minutes. A contestant that lacks time, a package or memory is named in the tables, and the others continue.

A step is forward, backward and Adam on random images that are on the device; ours augments as well. The host does not
wait between steps, as in training. Inference is from images on the host to logits on the host. The script also works on
a CPU, but there 8 minutes are too short for the largest network.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from scripts.benchmark import csv
from scripts.benchmark.comparison import describe_other_networks, speed_of
from scripts.benchmark.peers.worker import Worker

NETS = ("resnet50", "wrn16_4", "resnet34_gpu")
MODEL_KEYS = (
    *("depth", "stages", "width", "stem_kernel", "stem_stride", "stem_pool", "zero_init"),
    *("squeeze_excitation", "stochastic_depth", "dropout"),
)
CONTESTANTS = {
    "ours": {"peer": "ours"},
    "torch": {"peer": "torch_resnet", "compile": False},
    "torch-compile": {"peer": "torch_resnet", "compile": True},
    "flax": {"peer": "flax_resnet"},
}
# The FLOPs of each task as a fraction of those of a training step.
TASKS = {"step": 1.0, "inference": 1 / 3}
# The intended seconds of a turn; the share of a section's time that must be left once its contestants are ready.
TURN_SECONDS, LEFT_TO_MEASURE = 0.5, 0.25
# Options that permit runs of one or two epochs, and shorten the report.
SHORT = ["--config.optimizer.warmup_epochs=0", "--config.mix.off_epochs=0", "--config.evaluation.report_views=whole"]
NO_TIME = "there was no time left for it"


class Failed(Exception):
    """Something couldn't be measured; the message is for the table."""


@dataclasses.dataclass
class Clock:
    """The time until which a section may measure, in seconds of time.monotonic()."""

    end: float

    def left(self) -> float:
        return self.end - time.monotonic()


@dataclasses.dataclass
class Measured:
    """A line of the tables. what: its name. figures: for the JSON file. said: for people. failed: why it is missing."""

    section: str
    what: str
    figures: dict = dataclasses.field(default_factory=dict)
    said: str = ""
    failed: str = ""


# --- The machine and the networks.


def read_config(net: str):
    from fer_jax.system import command_line

    return command_line.read_config_file(net)


def net_of(name: str, arguments) -> dict:
    """Returns the network of a packaged config: {model, image_size, batch}."""
    config = read_config(name)
    return {
        "model": {key: config.model[key] for key in MODEL_KEYS} | arguments.model,
        "image_size": config.augment.crop or config.dataset.image_size,
        "batch": arguments.batch or config.batch_size,
    }


def probe(nets: dict) -> None:
    """Prints, in a process of its own, a description of the device and the networks' FLOPs of training on an image."""
    import jax

    from fer_jax.models import flops
    from fer_jax.system import accelerators
    from scripts.benchmark.peers import ours

    devices = jax.devices()
    size = {name: (net["image_size"], net["image_size"], 1) for name, net in nets.items()}
    answer = {
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "peak": flops.peak(devices[:1]),
        "memory": (devices[0].memory_stats() or {}).get("bytes_limit"),
        "dtype": accelerators.resolve_dtype("auto"),
        "flops": {name: flops.training_flops(ours.make_network(net), size[name]) for name, net in nets.items()},
        "jax": jax.__version__,
    }
    print(json.dumps(answer))


def ask(arguments: list[str], clock: Clock):
    """Runs this module with arguments in a process of its own, and returns the JSON that it prints."""
    command = [sys.executable, "-m", "scripts.benchmark", "accelerator", *arguments]
    with _named():
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=max(1.0, clock.left()))
        return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except subprocess.TimeoutExpired:
        raise Failed(NO_TIME) from None
    except subprocess.CalledProcessError as error:
        raise Failed(f"the process ended with status {error.returncode}") from None


# --- Contestants in turns.


def start_all(specs: dict, clock: Clock, stack: contextlib.ExitStack) -> tuple[dict[str, Worker], dict[str, str]]:
    """Starts a worker for each spec; returns {name: worker}, and {name: reason} for those that did not start."""
    ready_by = clock.end - LEFT_TO_MEASURE * max(0.0, clock.left())
    workers, left_out = {}, {}

    def start(names: list[str]) -> None:
        for name in names:
            if time.monotonic() > ready_by:
                left_out[name] = NO_TIME
                continue
            print(f"starting {name}", file=sys.stderr, flush=True)
            try:
                worker = Worker(specs[name], seconds=ready_by - time.monotonic())
            except (ModuleNotFoundError, RuntimeError, OSError) as error:
                left_out[name] = str(error)
            else:
                worker.limit(clock.left())
                workers[name] = worker
                stack.callback(worker.close)

    # The two lanes run in parallel: PyTorch's compiler is busy on the host, and XLA times its kernels on the device.
    lanes = [[name for name in specs if ("torch" in specs[name]["peer"]) == is_torch] for is_torch in (False, True)]
    with concurrent.futures.ThreadPoolExecutor(len(lanes)) as executor:
        for done in [executor.submit(start, lane) for lane in lanes]:
            done.result()
    return workers, left_out


def take_turns(workers: dict[str, Worker], clock: Clock, rounds: int) -> tuple[dict[str, dict], dict[str, str]]:
    """Returns {name: {seconds: of a call, round by round, memory}}, and {name: reason} for workers without a result.

    A worker that runs out of time keeps the rounds that it has finished.
    """
    found, failed, calls = {}, {}, {}
    for number in range(rounds + 1):
        # At least one round is measured; another only begins if the time left suffices for two.
        if number > 1 and clock.left() < 2 * sum(calls[name] * each["seconds"][-1] for name, each in found.items()):
            break
        for name, worker in workers.items():
            if name in failed:
                continue
            try:
                if number:
                    seconds = [*found.get(name, {}).get("seconds", []), worker.measure(calls[name])]
                    found[name] = {"seconds": seconds, "memory": worker.memory()}
                else:
                    calls[name] = min(200, max(1, round(TURN_SECONDS / worker.measure(1))))
            except (RuntimeError, OSError) as error:
                failed[name] = str(error)
                if isinstance(error, RuntimeError):
                    found.pop(name, None)
    return found, {name: why for name, why in failed.items() if name not in found}


def measure_specs(specs: dict, clock: Clock, arguments, machine: dict) -> tuple[dict[str, dict], dict[str, str]]:
    """Returns {name: {seconds, memory, versions, spec}} of what could be measured, and {name: reason} of the others.

    Contestants of the same task take turns. Raises Failed if their networks have different numbers of parameters.
    """
    # Only one process at a time can use a TPU.
    is_shared = machine["platform"] != "tpu"
    groups = [specs] if is_shared else [{name: spec} for name, spec in specs.items()]
    found, left_out = {}, {}
    for number, group in enumerate(groups):
        share = Clock(time.monotonic() + clock.left() / (len(groups) - number))
        with contextlib.ExitStack() as stack:
            workers, missing = start_all(group, share, stack)
            left_out |= missing
            if wrong := describe_other_networks(workers):
                raise Failed(wrong)
            for task in dict.fromkeys(spec["task"] for spec in group.values()):
                of_task = {name: worker for name, worker in workers.items() if specs[name]["task"] == task}
                measured, failed = take_turns(of_task, share, arguments.rounds)
                left_out |= failed
                for name, figures in measured.items():
                    found[name] = figures | {"versions": workers[name].versions, "spec": specs[name]}
    return found, left_out


# --- Sections: each yields its measurements.


def measure_net(name: str, clock: Clock, arguments, machine: dict) -> Iterator[Measured]:
    net = net_of(name, arguments)
    size = {key: net[key] for key in ("batch", "image_size")}
    dtype = net["model"].get("dtype", machine["dtype"])
    model = {key: value for key, value in net["model"].items() if key != "dtype"}
    specs = {}
    for contestant in arguments.contestants:
        spec = CONTESTANTS[contestant] | size
        if contestant == "ours":
            spec["model"] = model | {"dtype": dtype}
        else:
            spec |= {"net": model, "dtype": dtype, "platform": machine["platform"]}
        if spec["peer"] == "torch_resnet" and arguments.peers_python:
            spec["python"] = arguments.peers_python
        if spec["peer"] == "torch_resnet" and machine["platform"] not in ("cpu", "gpu"):
            yield Measured(f"nets {name}", contestant, failed="PyTorch has no such device")
            continue
        specs |= {f"{contestant} {task}": spec | {"task": task} for task in TASKS}
    found, left_out = measure_specs(specs, clock, arguments, machine)
    for key in sorted(specs, key=lambda key: list(TASKS).index(specs[key]["task"])):
        if key not in found:
            yield Measured(f"nets {name}", key, failed=left_out.get(key, NO_TIME))
            continue
        figures = found[key] | speed_of(found[key]["seconds"], images=net["batch"])
        flops = TASKS[specs[key]["task"]] * machine["flops"][name]
        figures["tflops"] = flops * figures["images_per_second"] / 1e12
        if machine["peak"] and dtype == "bfloat16":  # the peak is for bfloat16
            figures["mfu"] = figures["tflops"] * 1e12 / machine["peak"]
        yield Measured(f"nets {name}", key, figures, describe_task(figures))


def describe_task(figures: dict) -> str:
    """Returns the cells of a row: ms, their spread, images/s, TFLOP/s, MFU, GB."""
    spread = f"{figures['min'] * 1e3:,.2f} to {figures['max'] * 1e3:,.2f}"
    mfu = f"{figures['mfu']:.1%}" if "mfu" in figures else ""
    device, host = figures["memory"]["device"], figures["memory"]["host"]
    memory = f"{(device or host) / 1e9:.2f}{'' if device else ' (process)'}"
    cells = [f"{figures['median'] * 1e3:,.2f}", spread, f"{figures['images_per_second']:,.0f}"]
    return " | ".join([*cells, f"{figures['tflops']:,.2f}", mfu, memory])


def measure_loaders(clock: Clock, arguments, machine: dict) -> Iterator[Measured]:
    batch = net_of("wrn16_4", arguments)["batch"]
    spec = {"peer": "ours", "task": "pipeline", "batch": batch}
    specs = {f"{kind}, batch {batch}": spec | {"indices_only": kind == "indices"} for kind in ("images", "indices")}
    yield from _measure_others("loaders", specs, clock, arguments, machine, images=batch)


def measure_calls(clock: Clock, arguments, machine: dict) -> Iterator[Measured]:
    name = arguments.nets[-1] if "wrn16_4" not in arguments.nets else "wrn16_4"
    net, steps = net_of(name, arguments), arguments.steps
    spec = {"peer": "ours", "task": "calls", "steps": steps} | {key: net[key] for key in ("batch", "image_size")}
    spec["model"] = {"dtype": machine["dtype"]} | net["model"]
    numbers = {("tf.data", 1), ("tf.data", math.gcd(8, steps)), ("device", 1), ("device", steps)}
    specs = {
        f"{name}, {loader}, {number} in a call": spec | {"loader": loader, "steps_per_call": number}
        for loader, number in sorted(numbers, reverse=True)
    }
    yield from _measure_others("calls", specs, clock, arguments, machine, images=steps * net["batch"])


def _measure_others(
    section: str, specs: dict, clock: Clock, arguments, machine: dict, *, images: int
) -> Iterator[Measured]:
    found, left_out = measure_specs(specs, clock, arguments, machine)
    for name in specs:
        if name in found:
            figures = found[name] | speed_of(found[name]["seconds"], images=images)
            spread = f"{images / figures['max']:,.0f} to {images / figures['min']:,.0f}"
            yield Measured(section, name, figures, f"{figures['images_per_second']:,.0f} images/s ({spread})")
        else:
            yield Measured(section, name, failed=left_out.get(name, NO_TIME))


def _options(name: str, arguments) -> list[str]:
    """Returns the command's options for a network."""
    options = [f"--config.model.{key}={value}" for key, value in arguments.model.items()]
    options += [f"--config.batch_size={arguments.batch}"] if arguments.batch else []
    return [f"--config={name}", *options]


def _command(name: str, workdir: pathlib.Path, arguments, *options: str) -> list[str]:
    command = [sys.executable, "-m", "fer_jax.main", *_options(name, arguments), *SHORT]
    return [*command, f"--workdir={workdir}", *options]


def measure_determinism(clock: Clock, arguments, machine: dict) -> Iterator[Measured]:
    name = arguments.nets[0]
    with tempfile.TemporaryDirectory() as folder:
        workdirs = [pathlib.Path(folder, str(number)) for number in range(2)]
        options = ["--config.dataset.source=embedded", "--config.parallel.deterministic=True", "--config.num_epochs=1"]
        # The runs are simultaneous, except on a TPU: each disturbs the other's timing, which must not change the bits.
        groups = [[workdir] for workdir in workdirs] if machine["platform"] == "tpu" else [workdirs]
        for group in groups:
            _run_all([_command(name, workdir, arguments, *options) for workdir in group], clock)
        found = ask(["--digest", *map(str, workdirs)], clock)
    is_equal = found[0]["digest"] == found[1]["digest"]
    verdict = "the same bits" if is_equal else "OTHER BITS"
    said = f"{verdict} after {found[0]['step']} steps ({found[0]['digest'][:12]}, {found[1]['digest'][:12]})"
    yield Measured("determinism", f"two runs of {name}, deterministic", {"equal": is_equal, "runs": found}, said)


def _run_all(commands: list[list[str]], clock: Clock) -> None:
    """Runs commands in parallel; raises Failed if one fails or runs out of time."""
    with contextlib.ExitStack() as stack, _named():
        # The cache is off: with it both runs would load one program, which would hide the choices made in compiling.
        for run in [stack.enter_context(running(command, JAX_COMPILATION_CACHE_DIR="")) for command in commands]:
            if run.wait(max(1.0, clock.left())):
                raise Failed(f"the command ended with status {run.returncode}")


def digest(workdirs: list[str]) -> None:
    """Prints the SHA-256 of each run's latest parameters and statistics, and their step."""
    import jax
    import numpy as np

    from fer_jax.inference.trained_model import TrainedModel
    from fer_jax.workdir.paths import Workdir

    found = []
    for workdir in workdirs:
        model, total = TrainedModel.load(Workdir(workdir), "latest"), hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(model.variables)):
            total.update(jax.tree_util.keystr(path).encode())
            total.update(np.ascontiguousarray(leaf).tobytes())
        found.append({"digest": total.hexdigest(), "step": model.step})
    print(json.dumps(found))


@contextlib.contextmanager
def running(command: list[str], **environment: str) -> Iterator[subprocess.Popen]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | environment) as process:
        try:
            yield process
        finally:
            # SIGKILL rather than SIGTERM, since nothing in it is worth saving.
            process.send_signal(signal.SIGKILL)


def measure_epoch(name: str, clock: Clock, arguments, machine: dict, data: Callable[[], list[str]], step) -> Measured:
    """Measures the command's second epoch. data: returns its data options. step: images/s of the bare step, or None."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder, "run")
        options = ["--config.dataset.loader=device", "--config.log.every_steps=1000000", "--config.num_epochs=2"]
        with running(_command(name, workdir, arguments, *data(), *options)) as process:
            event = _second_epoch(workdir / "metrics.jsonl", process, clock)
    speed = event["images_per_second"]
    if arguments.model.get("dtype", "bfloat16") != "bfloat16":
        event.pop("mfu", None)
    figures = {key: event[key] for key in ("images_per_second", "tflops_per_second", "mfu") if key in event}
    figures |= {"loader": "device", "devices": machine["devices"]}
    said = [f"{speed:,.0f} images/s", f"{event['tflops_per_second']:,.2f} TFLOP/s"]
    said += [f"MFU {event['mfu']:.1%}"] if "mfu" in event else []
    if step:
        figures["share_of_step"] = speed / (step * machine["devices"])
        said.append(f"{figures['share_of_step']:.0%} of the bare step")
    return Measured("epoch", f"{name}, by the command", figures, ", ".join(said))


def _second_epoch(path: pathlib.Path, process: subprocess.Popen, clock: Clock) -> dict:
    """Waits for the end of the second epoch and returns its last training event."""
    while True:
        is_over = process.poll() is not None
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        trained = [event for event in events if event["kind"] == "train" and event["epoch"] == 2]
        if trained and (is_over or any(event["kind"] == "validation" and event["epoch"] == 2 for event in events)):
            return trained[-1]
        if is_over:
            raise Failed(f"the command ended with status {process.returncode}")
        if clock.left() < 0:
            raise Failed(NO_TIME)
        time.sleep(0.05)


# --- All sections.


def measure_all(arguments, end: float, machine: dict, folder: pathlib.Path) -> Iterator[list[Measured]]:
    """Yields the lines of each section, whether it failed or not."""
    steps = {}

    def data() -> list[str]:
        path = arguments.data or folder / "random.csv"
        if not arguments.data and not path.exists():
            csv.write_random_csv(path)
        return [f"--data={path}", f"--config.dataset.cache_dir={folder / 'prepared'}"]

    def net(name: str, clock: Clock) -> Iterator[Measured]:
        for measured in measure_net(name, clock, arguments, machine):
            if measured.what == "ours step" and measured.figures:
                steps[name] = measured.figures["images_per_second"]
            yield measured

    def epoch(name: str, clock: Clock) -> Iterator[Measured]:
        yield measure_epoch(name, clock, arguments, machine, data, steps.get(name))

    # (title, approximate weight of its time, function) of each section.
    plan = [(f"nets {name}", 6, lambda clock, name=name: net(name, clock)) for name in arguments.nets]
    plan += [
        ("loaders", 1, lambda clock: measure_loaders(clock, arguments, machine)),
        ("calls", 6, lambda clock: measure_calls(clock, arguments, machine)),
        ("determinism", 4, lambda clock: measure_determinism(clock, arguments, machine)),
    ]
    plan += [(f"epoch {name}", 3, lambda clock, name=name: epoch(name, clock)) for name in arguments.nets]
    plan = [section for section in plan if section[0].split()[0] in arguments.sections]
    for number, (title, weight, run) in enumerate(plan):
        left = end - time.monotonic()
        clock = Clock(time.monotonic() + left * weight / sum(weight for _, weight, _ in plan[number:]))
        print(f"\n{title}: {clock.left():.0f} s", file=sys.stderr, flush=True)
        lines = []
        try:
            for measured in run(clock):
                lines.append(measured)
        except Exception as error:
            # Whatever the error is, the other sections are still worth measuring.
            reason = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            lines.append(Measured(title, title, failed=" ".join(reason.split())[:300]))
        yield lines


def table(lines: list[Measured], machine: dict) -> str:
    """Returns both tables in Markdown."""
    rows = [f"{machine['device']} ({machine['platform']}), {machine['dtype']}, jax {machine['jax']}", ""]
    nets = [line for line in lines if line.section.startswith("nets")]
    if nets:
        rows += ["| net | | ms | min to max | images/s | TFLOP/s | MFU | peak memory, GB |"]
        rows += ["|---|---|---:|---:|---:|---:|---:|---:|"]
        for line in nets:
            cells = line.said or f"not measured: {line.failed} | | | | | "
            rows.append(f"| {line.section.removeprefix('nets ')} | {line.what} | {cells} |")
        rows.append("")
    others = [line for line in lines if line not in nets]
    if others:
        rows += ["| | | measured |", "|---|---|---|"]
        for line in others:
            rows.append(f"| {line.section.split()[0]} | {line.what} | {line.said or f'not measured: {line.failed}'} |")
    return "\n".join(rows)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sections = ("nets", "loaders", "calls", "determinism", "epoch")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (default: %(default)s)")
    parser.add_argument("--sections", choices=sections, nargs="+", default=list(sections))
    parser.add_argument("--nets", choices=NETS, nargs="+", default=list(NETS), help="names of configs")
    parser.add_argument("--contestants", choices=CONTESTANTS, nargs="+", default=list(CONTESTANTS))
    parser.add_argument("--model", type=json.loads, default={}, help="config.model's changes, in JSON")
    parser.add_argument("--batch", type=int, help="in place of each config's")
    parser.add_argument("--rounds", type=int, default=5, help="at most, that are counted")
    parser.add_argument("--steps", type=int, default=32, help="of the section calls: many in a call")
    parser.add_argument("--data", type=pathlib.Path, help="FER-2013 for the epochs (default: random images)")
    parser.add_argument("--peers-python", help="interpreter for PyTorch, if it has its own")
    parser.add_argument("--json", type=pathlib.Path, help="default: runs/benchmark/accelerator-TIME.json")
    parser.add_argument("--probe", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--digest", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.probe is not None:
        return probe(arguments.probe)
    if arguments.digest:
        return digest(arguments.digest)

    if arguments.data and not arguments.data.exists():
        parser.error(f"--data={arguments.data}: there is no such file or folder")
    if arguments.peers_python and not shutil.which(arguments.peers_python):
        parser.error(f"--peers-python={arguments.peers_python}: there is no such program")

    from scripts.benchmark.__main__ import describe_machine

    # Several processes hold the device's memory at once, so none may take it all.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    end = time.monotonic() + 60 * arguments.minutes
    nets = {name: net_of(name, arguments) for name in arguments.nets}
    try:
        machine = ask(["--probe", json.dumps(nets)], Clock(end))
    except Failed as error:
        sys.exit(f"error: what is there to compute on can't be found out: {error}")
    path = arguments.json or pathlib.Path(f"runs/benchmark/accelerator-{time.strftime('%Y%m%d-%H%M%S')}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {"machine": describe_machine() | machine, "part": "accelerator", "measured": []}
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for section in measure_all(arguments, end, machine, pathlib.Path(folder)):
            lines += section
            written["measured"] = [dataclasses.asdict(line) for line in lines]
            path.write_text(json.dumps(written, indent=1))
    print(f"{table(lines, machine)}\n\n{path}")
