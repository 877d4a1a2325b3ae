"""Kills a run again and again, and compares the outcome with that of an undisturbed run.

`python -m scripts.reliability kills --kills 100` trains a tiny network. At random moments, most of them in the
vulnerable phases (preparing the data, an epoch, an evaluation, a checkpoint's write, the report), the process gets
SIGKILL, and the same command is started again. When a run ends, its weights, optimizer state, batch statistics,
metrics.jsonl, history.csv, TensorBoard events and reports must equal those of the undisturbed run, bit for bit except
for what the clock measures; then the next run begins. Prints the number of kills of each kind; fails at the first
difference.
"""

import argparse
import collections
import csv
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import tempfile
import time

import numpy as np

from tests.support.tiny_run import PROCESSES, TINY, run_command, write_faces

STEPS = 5  # per epoch
CLOCK = ("images_per_second", "tflops_per_second")


def options(data: pathlib.Path, workdir: pathlib.Path, prepared: pathlib.Path, epochs: int) -> list[str]:
    values = TINY | {
        "num_epochs": epochs,
        "batch_size": 40 // STEPS,
        "dataset.path": data,
        "dataset.cache_dir": prepared,
        "checkpoint.every_steps": 2,
        "log.every_steps": 1,
        "model.conv": "auto",  # the implementation that real runs use
    }
    command = ["--config=configs/resnet50.py", f"--workdir={workdir}"]
    return command + [f"--config.{key}={value}" for key, value in values.items()]


def start(arguments: list[str], log: str) -> multiprocessing.process.BaseProcess:
    """Starts the command and appends its output to `log`."""
    # The restart for huge pages would import everything a second time.
    process = PROCESSES.Process(target=_log_command, args=(arguments, log, os.environ | {"GLIBC_TUNABLES": ""}))
    process.start()
    return process


def _log_command(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    with open(log, "ab") as file:
        run_command(arguments, file, file, environment)


def events_of(workdir: pathlib.Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def is_preparing(workdir: pathlib.Path, prepared: pathlib.Path) -> bool:
    return any(prepared.glob(".preparing-*"))


def is_training(workdir: pathlib.Path, prepared: pathlib.Path) -> bool:
    return bool(events_of(workdir))


def is_evaluating(workdir: pathlib.Path, prepared: pathlib.Path) -> bool:
    events = events_of(workdir)
    return bool(events) and events[-1]["kind"] == "train" and events[-1]["step"] % STEPS == 0


def is_saving(workdir: pathlib.Path, prepared: pathlib.Path) -> bool:
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def is_reporting(workdir: pathlib.Path, prepared: pathlib.Path) -> bool:
    return (workdir / "report" / "evaluation_validation.json").exists()


def is_running(workdir: pathlib.Path, prepared: pathlib.Path) -> bool:
    return True


# Name: (the condition to wait for, the longest delay in seconds from then to the kill).
MOMENTS = {
    "while preparing the data": (is_preparing, 0.3),
    "while training": (is_training, 1.0),
    "while evaluating": (is_evaluating, 0.2),
    "while saving": (is_saving, 0.05),
    "while reporting": (is_reporting, 0.3),
    "anywhere": (is_running, 10.0),
}


def kill_at(moment: str, arguments: list[str], log: str, workdir, prepared, generator: random.Random) -> str:
    """Starts the command and kills it at the moment; returns 'killed', or 'finished' if it ended first."""
    reached, longest = MOMENTS[moment]
    process = start(arguments, log)
    while process.is_alive() and not reached(workdir, prepared):
        time.sleep(0.002)
    process.join(generator.uniform(0, longest))
    alive = process.is_alive()
    process.kill()
    process.join()
    if not alive:
        _check_ended_well(process, log)
    return "killed" if alive else "finished"


def finish(arguments: list[str], log: str) -> None:
    process = start(arguments, log)
    process.join()
    _check_ended_well(process, log)


def _check_ended_well(process: multiprocessing.process.BaseProcess, log: str) -> None:
    if process.exitcode != 0:
        raise AssertionError(
            f"the command ended with status {process.exitcode}:\n{pathlib.Path(log).read_text()[-4000:]}"
        )


def outcome(workdir: pathlib.Path) -> dict:
    """Returns everything that a run writes, except for what the clock measures."""
    import jax
    import orbax.checkpoint as ocp
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {"events": [{k: v for k, v in event.items() if k not in CLOCK} for event in events_of(workdir)]}
    with (workdir / "report" / "history.csv").open() as file:
        found["history"] = [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]
    for path in sorted((workdir / "report").glob("*.json")):
        found[path.name] = json.loads(path.read_text())
    accumulator = EventAccumulator(str(workdir), size_guidance={"tensors": 0}).Reload()
    for tag in accumulator.Tags()["tensors"]:
        if not any(name in tag for name in CLOCK):
            found[f"TensorBoard {tag}"] = [event.step for event in accumulator.Tensors(tag)]
    checkpoints = workdir / "checkpoints"
    found["checkpoints"] = sorted(int(path.name) for path in checkpoints.iterdir())
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("weights", "training"):
            path = checkpoints / str(max(found["checkpoints"])) / item
            for key, leaf in jax.tree_util.tree_leaves_with_path(checkpointer.restore(path)):
                found[f"{item}{jax.tree_util.keystr(key)}"] = np.asarray(leaf).tobytes()
    return found


def inject(num_kills: int, seed: int, folder: pathlib.Path, epochs: int = 6, say=print) -> dict[str, int]:
    """Kills runs of `epochs` epochs until there were `num_kills` kills; returns their numbers by moment, and of runs.

    Raises AssertionError if a run differs from the undisturbed one.
    """
    generator, killed, finished = random.Random(seed), collections.Counter(), 0
    data, log = write_faces(folder / "fer2013.csv"), str(folder / "log")
    undisturbed = folder / "undisturbed"
    finish(options(data, undisturbed, folder / "prepared", epochs), log)
    expected = outcome(undisturbed)
    while killed.total() < num_kills:
        workdir, prepared = folder / f"run{finished}", folder / f"prepared{finished}"
        arguments, ended = options(data, workdir, prepared, epochs), False
        kills_of_this_run = 0
        # Few kills per run, so that runs also end. A run prepares its data only once, unless they are deleted.
        while not ended and kills_of_this_run < 8 and killed.total() < num_kills:
            moment = generator.choice(list(MOMENTS))
            if moment == "while preparing the data" and any(prepared.glob("fer2013-*")):
                shutil.rmtree(prepared)
            if kill_at(moment, arguments, log, workdir, prepared, generator) == "finished":
                ended = True
            else:
                killed[moment] += 1
                kills_of_this_run += 1
                say(f"kill {killed.total()}: {moment}, at {len(events_of(workdir))} events", flush=True)
        finish(arguments, log)
        found = outcome(workdir)
        different = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
        if different:
            raise AssertionError(f"{workdir} after {kills_of_this_run} kills differs in {sorted(different)}")
        finished += 1
        say(f"run {finished} is what it would have been ({kills_of_this_run} kills)", flush=True)
    return dict(killed) | {"runs": finished}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(folder, "compiled"))
        summary = inject(arguments.kills, arguments.seed, pathlib.Path(folder))
    print(json.dumps(summary, indent=1))
