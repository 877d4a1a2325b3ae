"""The items in which a checkpoint holds a TrainState, and the checksums that tell whether they are intact."""

import json
import zlib
from typing import Any

import jax
import numpy as np

from fer_jax.recipe.state import TrainState


class Damaged(Exception):
    """A checkpoint can't be read, or its checksums differ from those that were saved."""


def items_of(state: TrainState) -> dict[str, dict]:
    """Returns the trees of a state, by the name of the checkpoint item that holds each."""
    items = {"weights": state.variables, "training": {"step": state.step, "opt_state": state.opt_state}}
    return items if state.ema is None else items | {"ema": state.ema}


def with_checksums(record: dict[str, Any], trees: dict[str, dict]) -> dict[str, Any]:
    """Returns the record with the checksums of the other items' trees, by item, and its own checksum added."""
    summed = record | {"checksums": {item: _checksum(tree) for item, tree in trees.items()}}
    return summed | {"checksum": checksum_of_json(summed)}


def require_sound_record(record: dict[str, Any], step: int) -> None:
    """Removes the checksum from a step's stored record; raises Damaged if it is not the checksum of the rest."""
    try:
        _, stored = record["format"], record.pop("checksum")
    except (KeyError, TypeError):
        raise Damaged(f"the checkpoint of step {step} has a record without format or checksum") from None
    if stored != checksum_of_json(record) or record["step"] != step:
        raise Damaged(f"the checkpoint of step {step} has a record that is not what was saved")


def require_sound_items(trees: dict[str, dict], checksums: dict[str, int], step: int) -> None:
    """Raises Damaged if the restored trees, by item, have other checksums than the stored ones."""
    for item, tree in trees.items():
        if _checksum(tree) != checksums.get(item):
            raise Damaged(f"the checkpoint of step {step} has {item} that are not what was saved")


def _checksum(tree) -> int:
    """Returns the CRC-32 of all leaves, which are replicated; it is the same for any number of devices."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total = zlib.crc32(np.ascontiguousarray(jax.device_get(leaf.addressable_data(0))), total)
    return total


def checksum_of_json(record: dict[str, Any]) -> int:
    """Returns the CRC-32 of a record without its own checksum."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
