"""Computing on many devices: the mesh, mapping a step over it, and putting arrays on its devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS_NAME = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of one axis, sorted by process, so that each process's part is contiguous.

    devices: all devices if None.
    """
    # jax.devices() may interleave the processes; then a process would hold rows that it has not read.
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (AXIS_NAME,), axis_types=(AxisType.Auto,))


def map_step(step: Callable, mesh: Mesh, mapper: str, *, batch_axis: int = 0, donate: bool = False) -> Callable:
    """Returns `step(replicated, data, batch) -> replicated`, mapped over the mesh and compiled when first called.

    Args:
      step: a function that runs on every device and reduces over AXIS_NAME itself. Its second argument is replicated.
      mapper: 'shard_map' or 'pmap'.
      batch_axis: the axis of the batch that is split over the devices (see `shard_batch`).
      donate: whether the result may reuse the memory of the first argument.

    Returns:
      A function with the method `lower`, which takes jax.ShapeDtypeStruct in place of arrays.
    """
    donated = (0,) if donate else ()
    if mapper == "pmap":
        mapped = jax.pmap(
            step,
            AXIS_NAME,
            in_axes=(None, None, 0),
            out_axes=None,
            devices=list(mesh.devices.flat),
            donate_argnums=donated,
        )
        return mapped if jax.process_count() == 1 else _GlobalPmap(mapped, mesh)
    replicated = PartitionSpec()
    # check_vma=False: each device keeps gradients of its own until the step itself reduces them.
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(replicated, replicated, _split(batch_axis)), out_specs=replicated, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=donated)


class _GlobalPmap:
    """A pmap of several processes that takes and returns global arrays, as a jitted function does.

    pmap accepts global arrays, but it returns arrays of this process's devices only, and `lower` tries to convert a
    ShapeDtypeStruct as if it were an array of this process.
    """

    def __init__(self, mapped: Callable, mesh: Mesh):
        self._mapped, self._mesh = mapped, mesh

    def __call__(self, *arguments):
        result = self._mapped(*arguments)
        return multihost_utils.host_local_array_to_global_array(result, self._mesh, PartitionSpec())

    def lower(self, *arguments):
        return self._mapped.lower(*jax.tree.map(self._concrete, arguments))

    def _concrete(self, leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.make_array_from_process_local_data(leaf.sharding, np.zeros(leaf.shape, leaf.dtype), leaf.shape)
        return leaf


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts `tree`, which must be equal in every process, on every device."""
    # jax.device_put refuses to move an array from one device to devices of other processes.
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec()), jax.device_get(tree))


def shard_batch(batch: dict, mesh: Mesh, mapper: str, *, batch_axis: int = 0) -> dict:
    """Splits this process's part of a batch (numpy arrays) over its devices, in order, along `batch_axis`.

    Returns:
      The global batch. For 'pmap' each array has a leading axis of devices.
    """
    if mapper == "pmap":
        batch = {key: np.stack(np.split(value, mesh.local_mesh.size, batch_axis)) for key, value in batch.items()}
        batch_axis = 0
    # JAX treats this as an explicit transfer in a single process, but as an implicit one in several.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(NamedSharding(mesh, _split(batch_axis)), batch)


def _split(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, AXIS_NAME)
