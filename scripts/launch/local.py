"""Runs the command as several processes on this machine: python -m scripts.launch.local --processes N [--] OPTIONS

OPTIONS are those of `python -m fer_jax.main`. This script is for trying out a run on several hosts with one
machine, on its CPU unless JAX_PLATFORMS names another device; to use all accelerators of the machine, a single process
is enough. Signals are forwarded to all processes. When one fails, the others get a minute to notice. The exit status is
that of the first process that failed.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

GRACE_SECONDS = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(num_processes: int, options: list[str]) -> list[subprocess.Popen]:
    """Starts the processes; process 0 is the one that prints and writes files."""
    common = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(num_processes)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "fer_jax.main", *options],
            # Each process would take all GPUs, and NCCL refuses two processes on one.
            env={"JAX_PLATFORMS": "cpu"} | os.environ | common | {"JAX_PROCESS_ID": str(process_id)},
            # The terminal sends Ctrl-C to its process group. In a group of its own a process gets it once, from `main`.
            process_group=0,
        )
        for process_id in range(num_processes)
    ]


def wait(processes: list[subprocess.Popen]) -> int:
    """Waits for all processes; returns the status of the first that failed, or 0."""
    status, deadline = 0, None
    while any(process.poll() is None for process in processes):
        failed = [process.returncode for process in processes if process.returncode]
        if failed and deadline is None:
            status, deadline = failed[0], time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    return status or next((process.returncode for process in processes if process.returncode), 0)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True, help="how many")
    arguments, options = parser.parse_known_args(argv)
    if arguments.processes < 1:
        parser.error(f"--processes is {arguments.processes}; it must be at least 1")
    processes = start(arguments.processes, [option for option in options if option != "--"])

    def forward(number, _frame):
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
    status = wait(processes)
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
