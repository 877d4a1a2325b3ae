"""The processes of one run: how they find each other, and how they agree on data and on errors."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fer_jax.errors import FerJaxError, LostProcessError, UserError
from fer_jax.system import exits

# The variables in which launchers state the number of processes: scripts/launch or a user, Open MPI, SLURM.
_NUM_PROCESSES = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")

# A process that sends no heartbeat for this long counts as lost, and the others leave.
_HEARTBEAT_SECONDS = 30


def join_processes(options: Mapping[str, Any]) -> None:
    """Joins this process to the others of its run, if there are any. Must precede any other use of JAX.

    There are others if `distributed` is True, or if it is None and there is a coordinator or a launcher that started
    several processes.

    Args:
      options: `config.parallel`, or {}.

    Raises:
      UserError: as `initialize` does.
    """
    distributed, coordinator = options.get("distributed"), options.get("coordinator")
    if distributed is None:
        started_several = any(os.environ.get(name, "1") not in ("", "1") for name in _NUM_PROCESSES)
        distributed = coordinator is not None or started_several
    if distributed:
        initialize(coordinator, options.get("num_processes"), options.get("process_id"))


def initialize(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins this process to the others of a distributed run. CPU processes communicate over gloo.

    A value that is None comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or from the launcher:
    JAX knows SLURM, Open MPI and Cloud TPU.

    Args:
      coordinator: host:port of process 0.

    Raises:
      UserError: if neither these values nor the launcher identify the processes.
      LostProcessError: if another process can't be reached.
    """
    # Without gloo, CPU processes could not sum across processes; accelerators ignore the setting.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            _from_environment("JAX_NUM_PROCESSES") if num_processes is None else num_processes,
            _from_environment("JAX_PROCESS_ID") if process_id is None else process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except jax.errors.JaxRuntimeError as error:
        raise LostProcessError(exits.describe_lost_process(error)) from error
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"this process can't join the others: {' '.join(str(error).split())} Set config.parallel.coordinator, "
            "config.parallel.num_processes and config.parallel.process_id, or start it by a launcher that JAX knows; "
            "Open MPI from version 5 on needs pip install mpi4py"
        ) from error
    # JAX's own handler only takes note of the signal. Until there is something to save it ends the process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def require_agreement(values: Mapping[str, str | int | float | None]) -> None:
    """Raises the same UserError in every process if `values` are not the same in all processes of the run.

    All processes must call it at the same point. A single process has nothing to compare.

    Args:
      values: what must agree, by the name under which the error shows it, for example {'the dataset': fingerprint}.
    """
    if jax.process_count() == 1:
        return
    everywhere = _gather(dict(values))
    lines = []
    for name in sorted({name for others in everywhere for name in others}):
        holders: dict[str, list[int]] = {}
        for process, others in enumerate(everywhere):
            holders.setdefault(repr(others.get(name)), []).append(process)
        if len(holders) > 1:
            parts = [f"{value} in {_name_processes(processes)}" for value, processes in holders.items()]
            lines.append(f"the processes of this run differ: {name} is {', '.join(parts)}")
    if lines:
        raise UserError("\n".join(lines))


@contextlib.contextmanager
def agreeing_on_errors() -> Iterator[None]:
    """Makes every process of the run leave with the same status if the body fails in one of them.

    Without it, the processes in which the body succeeds would wait for the failed one in their next collective. All
    processes must enter it at the same point, and the body must not communicate: a failed process would be missing.

    Raises:
      FerJaxError: in a process whose own body succeeded, the class and exit status of the first error of another one.
    """
    if jax.process_count() == 1:
        yield
        return
    error = None
    try:
        yield
    except Exception as failure:
        error = failure
    outcomes = _gather(None if error is None else _describe_error(error))
    if error is not None:
        raise error
    for process, outcome in enumerate(outcomes):
        if outcome is not None:
            message = "\n".join(f"process {process}: {line}" for line in outcome["message"].splitlines())
            raise _make_error(outcome["exit_status"], message)


def _describe_error(error: Exception) -> dict[str, Any]:
    known = exits.as_known_error(error)
    if known is not None:
        return {"exit_status": known.exit_status, "message": str(known)}
    return {"exit_status": 1, "message": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def _make_error(exit_status: int, message: str) -> FerJaxError:
    for kind in FerJaxError.__subclasses__():
        if kind.exit_status == exit_status:
            return kind(message)
    error = FerJaxError(message)  # a bug: the process that has it prints the traceback
    error.exit_status = exit_status
    return error


def _name_processes(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"process{'es' if len(numbers) > 1 else ''} {shown}"


def _gather(value: Any) -> list[Any]:
    """Returns the JSON-able `value` of every process, in order. All processes must call it at the same point."""
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # Processes can only exchange arrays of equal shape, so the lengths come first, then the padded contents.
    lengths = multihost_utils.process_allgather(np.int32(len(content)))
    padded = np.zeros(max(lengths), np.uint8)
    padded[: len(content)] = content
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def _from_environment(name: str) -> int | None:
    value = os.environ.get(name)
    return int(value) if value else None
