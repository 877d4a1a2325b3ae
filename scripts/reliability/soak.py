"""Watches a long run of a tiny network: python -m scripts.reliability soak [--steps N]

Starts the command for N steps (default 10,000) of a ResNet-10 of width 2 with a checkpoint every 50 steps, samples its
process once a second, and prints memory, open files, threads, the workdir's size and the number of checkpoints:
after a quarter of the steps, when everything is warm, at the end, and the maximum of each. Only the workdir may grow,
by a line of metrics every 50 steps.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from scripts.reliability.kills import events_of
from tests.support.tiny_run import TINY

STEPS_PER_EPOCH = 100


def look(pid: int, workdir: pathlib.Path) -> dict[str, int]:
    """Returns the current resource usage of a process and of its workdir."""
    status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    files = []
    for folder, _, names in os.walk(workdir):
        files += [pathlib.Path(folder, name) for name in names]
    size = 0
    for path in files:
        try:
            size += path.stat().st_size
        except FileNotFoundError:  # deleted in the meantime
            continue
    events = events_of(workdir)
    checkpoints = workdir / "checkpoints"
    return {
        "step": events[-1]["step"] if events else 0,
        "memory_mb": int(status["VmRSS"].split()[0]) // 1024,
        "open_files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
        "disk_kb": size // 1024,
        "checkpoints": sum(path.name.isdecimal() for path in checkpoints.iterdir()) if checkpoints.exists() else 0,
    }


def soak(num_steps: int, folder: pathlib.Path) -> list[dict[str, int]]:
    """Returns the results of `look` once a second, from the first step on."""
    workdir, seen = folder / "run", []
    values = TINY | {
        "model.conv": "auto",  # the implementation that real runs use
        "dataset.source": "embedded",
        "batch_size": 1_400 // STEPS_PER_EPOCH,
        "num_epochs": -(-num_steps // STEPS_PER_EPOCH),
        "early_stopping.patience": num_steps,
        "checkpoint.every_steps": 50,
    }
    options = ["--config=configs/resnet50.py", f"--workdir={workdir}"]
    options += [f"--config.{key}={value}" for key, value in values.items()]
    environment = os.environ | {"GLIBC_TUNABLES": ""}
    with subprocess.Popen(
        [sys.executable, "-m", "fer_jax.main", *options], env=environment, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            time.sleep(1)
            try:
                now = look(process.pid, workdir)
            except (FileNotFoundError, KeyError):  # it has just ended
                continue
            if now["step"]:
                seen.append(now)
    if process.returncode:
        sys.exit(f"the command ended with status {process.returncode}")
    return seen


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        seen = soak(arguments.steps, pathlib.Path(folder))
    warm = next(now for now in seen if now["step"] >= arguments.steps / 4)
    most = {key: max(now[key] for now in seen) for key in warm}
    for name, figures in (("warm", warm), ("end", seen[-1]), ("most", most)):
        print(f"{name:<6}{json.dumps(figures)}")
