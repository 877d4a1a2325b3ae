"""Many devices: the mesh, mapping a step over it, placing batches on it, starting several processes."""

import os
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def initialize_processes() -> None:
    """Joins this process to the others of a distributed run; call before any other use of JAX.

    JAX knows SLURM, Open MPI, Kubernetes and Cloud TPU by itself; elsewhere JAX_COORDINATOR_ADDRESS (host:port of
    process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. CPU processes talk over gloo.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    num_processes, process_id = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    jax.distributed.initialize(
        num_processes=int(num_processes) if num_processes else None,
        process_id=int(process_id) if process_id else None,
    )


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
