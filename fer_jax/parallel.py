"""Many devices: the mesh, mapping a step over it, placing batches on it, starting several processes."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fer_jax.errors import UserError

AXIS = "data"

# Where launchers say how many processes they started: by hand (and scripts/launch), Open MPI, SLURM.
_NUM_PROCESSES = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")

# A process that hasn't been heard of for so long is gone, and the others leave.
_HEARTBEAT_SECONDS = 30


def join_processes(options: Mapping[str, Any]) -> None:
    """Joins this process to the others of its run, if there are any; call before any other use of JAX.

    options: `config.parallel`, or {}. There are others where `distributed` says so or, left open, where there is a
    coordinator or a launcher started several. For what is raised see `initialize_processes`.
    """
    distributed, coordinator = options.get("distributed"), options.get("coordinator")
    if distributed is None:
        started_several = any(os.environ.get(name, "1") not in ("", "1") for name in _NUM_PROCESSES)
        distributed = coordinator is not None or started_several
    if distributed:
        initialize_processes(coordinator, options.get("num_processes"), options.get("process_id"))


def initialize_processes(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins this process to the others of a distributed run.

    coordinator: host:port of process 0. What is None is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, or from the launcher: JAX knows SLURM, Open MPI and Cloud TPU. CPU processes talk over gloo. Raises
    UserError where neither says enough.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            _from_environment("JAX_NUM_PROCESSES") if num_processes is None else num_processes,
            _from_environment("JAX_PROCESS_ID") if process_id is None else process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except jax.errors.JaxRuntimeError:  # another process can't be reached
        raise
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"this process can't join the others: {' '.join(str(error).split())} Set config.parallel.coordinator, "
            "config.parallel.num_processes and config.parallel.process_id, or start it by a launcher that JAX knows; "
            "Open MPI from version 5 on needs pip install mpi4py"
        ) from error


def _from_environment(name: str) -> int | None:
    value = os.environ.get(name)
    return int(value) if value else None


def make_mesh() -> Mesh:
    """Puts all devices of all processes on one axis, process by process, so that a host's part is contiguous."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def map_step(step: Callable, mesh: Mesh, mapper: str, *, batch_axis: int = 0, donate: bool = False) -> Callable:
    """Maps `step(replicated, data, batch) -> replicated` over the mesh and compiles it when first called.

    data is replicated too. mapper: 'shard_map' or 'pmap'. batch_axis: that of the batch which is spread over the
    devices (see `place`). donate: whether the first argument's memory is given to the result.
    """
    donated = (0,) if donate else ()
    if mapper == "pmap":
        return jax.pmap(
            step, AXIS, in_axes=(None, None, 0), out_axes=None, devices=list(mesh.devices.flat), donate_argnums=donated
        )
    # check_vma=False: gradients stay each device's own until the step itself adds them up.
    whole = PartitionSpec()
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(whole, whole, _spread(batch_axis)), out_specs=whole, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=donated)


def replicate(tree, mesh: Mesh):
    """Puts the whole of `tree`, which is the same in every process, on every device."""
    # device_put can't: it refuses to move what is on one device to devices of other processes.
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec()), jax.device_get(tree))


def place(batch: dict, mesh: Mesh, mapper: str, *, batch_axis: int = 0) -> dict:
    """Spreads this process's part of a batch (numpy arrays) over its devices, in order, along `batch_axis`.

    The result is the global batch; for 'pmap' with a leading axis of devices.
    """
    if mapper == "pmap":
        batch = {key: np.stack(np.split(value, mesh.local_mesh.size, batch_axis)) for key, value in batch.items()}
        batch_axis = 0
    # JAX takes this for an explicit transfer with one process, and for an implicit one with several.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(NamedSharding(mesh, _spread(batch_axis)), batch)


def _spread(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, AXIS)
