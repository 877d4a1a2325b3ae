"""Prints the peak memory of an epoch of the command on the embedded dataset: python -m scripts.benchmark memory

Each variant is a process of its own. Its peak is the one that the operating system reports (ru_maxrss) for all of it.
"""

import os
import subprocess
import sys
import tempfile

VARIANTS = [
    "--config.batch_size=64",
    "--config.batch_size=64 --config.model.remat=True",
    "--config.batch_size=64 --config.train.grad_accum_steps=4",
    "--config.batch_size=256",
    "--config.batch_size=256 --config.train.grad_accum_steps=4",
]


def resident_bytes(usage) -> int:
    """Returns the peak memory of a process in bytes; usage: its resources (struct_rusage) from the operating system."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_bytes(command: list[str]) -> int:
    """Returns the peak memory of the process of a command in bytes; exits if the command fails."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} failed")
    return resident_bytes(usage)


def main(argv: list[str]) -> None:
    """Prints a line for each variant; `argv` replaces the variants."""
    train = [sys.executable, "-m", "fer_jax.main", "--config=configs/resnet50.py", "--config.dataset.source=embedded"]
    for variant in argv or VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            peak = peak_bytes([*train, f"--workdir={folder}/run", "--config.num_epochs=1", *variant.split()])
        print(f"{peak / 1e9:6.2f} GB  {variant}", flush=True)
