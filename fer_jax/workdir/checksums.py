"""What a checkpoint holds of a TrainState, and the checksums by which it is known to be whole."""

import json
import zlib
from typing import Any

import jax
import numpy as np

from fer_jax.recipe.state import TrainState


def items_of(state: TrainState) -> dict[str, dict]:
    """Returns the trees of a state by the item that holds each."""
    items = {"weights": state.variables, "training": {"step": state.step, "opt_state": state.opt_state}}
    return items if state.ema is None else items | {"ema": state.ema}


def with_checksums(record: dict[str, Any], trees: dict[str, dict]) -> dict[str, Any]:
    """Returns a record with the checksums of the trees beside it, by item, and with its own."""
    summed = record | {"checksums": {item: checksum(tree) for item, tree in trees.items()}}
    return summed | {"checksum": checksum_of_json(summed)}


def checksum(tree) -> int:
    """Returns the CRC-32 of all leaves, which every device has whole; the same for any number of devices."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total = zlib.crc32(np.ascontiguousarray(jax.device_get(leaf.addressable_data(0))), total)
    return total


def checksum_of_json(record: dict[str, Any]) -> int:
    """Returns the CRC-32 of a record without its own checksum."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
