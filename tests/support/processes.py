"""Starts a Python script in several real processes, which JAX connects on the loopback interface."""

import os
import socket

from tests.support.commands import Forked

_JOIN = """
import sys, time
from fer_jax.system import exits, processes
import jax, numpy as np
processes.join_processes({})
"""


def free_port() -> int:
    """Returns a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(script: str, number: int, *, devices: int = 1) -> list[Forked]:
    """Starts `script`, after code that connects the processes, in `number` processes of `devices` CPU devices each."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": str(number),
    }
    return [
        Forked(_JOIN + script, [], environment | {"JAX_PROCESS_ID": str(process_id)}) for process_id in range(number)
    ]


def finish(processes: list[Forked], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Waits for the processes and returns (status, standard output, standard error) of each."""
    outputs = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=timeout)
            outputs.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return outputs


def run(script: str, number: int, *, devices: int = 1) -> list[tuple[int, str, str]]:
    return finish(start(script, number, devices=devices))


def said(err: str) -> list[str]:
    """Returns the lines of the command itself; gloo and JAX write lines of their own."""
    return [line for line in err.splitlines() if line.startswith("fer_jax: ")]
