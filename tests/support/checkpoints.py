"""Reads checkpoints without the code that wrote them."""

import pathlib

import jax
import orbax.checkpoint as ocp


def read_arrays(workdir: pathlib.Path) -> dict[str, jax.Array]:
    """Returns {path: array} of a run's latest checkpoint, on one device, whatever devices it was made on."""
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    arrays = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("weights", "training"):
            path = workdir / "checkpoints" / str(max(steps)) / item
            stored = checkpointer.metadata(path).item_metadata
            abstract = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
                getattr(stored, "tree", stored),
            )
            restored = checkpointer.restore(path, abstract)
            arrays |= {item + jax.tree_util.keystr(key): leaf for key, leaf in jax.tree.leaves_with_path(restored)}
    return arrays
