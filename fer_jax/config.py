"""Checks a config once, at start-up, and says what is wrong with it."""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import config_dict

from fer_jax.errors import UserError

_AT_LEAST_ONE = ("at least 1", lambda value: value >= 1)
_NOT_NEGATIVE = ("at least 0, and finite", lambda value: 0 <= value < math.inf)
_POSITIVE = ("above 0, and finite", lambda value: 0 < value < math.inf)
_BELOW_ONE = ("from 0 to below 1", lambda value: 0 <= value < 1)


def _one_of(*choices) -> tuple[str, Callable[[Any], bool]]:
    return "one of " + ", ".join(map(str, choices)), lambda value: value in choices


# Every key there is, the type of its value and what the value must be.
_RULES = {
    "seed": (int, *_NOT_NEGATIVE),
    "num_epochs": (int, *_AT_LEAST_ONE),
    "batch_size": (int, *_AT_LEAST_ONE),
    "dataset.source": (str, *_one_of("auto", "fer2013", "embedded")),
    "dataset.path": (str, "a file or folder", bool),
    "dataset.cache_dir": (str, "a folder", bool),
    "dataset.loader": (str, *_one_of("tf.data", "device")),
    "augment.flip": (float, "from 0 to 1", lambda value: 0 <= value <= 1),
    "augment.rotation": (float, "from 0 to 180", lambda value: 0 <= value <= 180),
    "augment.zoom": (float, *_BELOW_ONE),
    "augment.shift": (float, *_BELOW_ONE),
    "model.depth": (int, *_one_of(18, 34, 50, 101, 152)),
    "model.width": (int, *_AT_LEAST_ONE),
    "model.stem_kernel": (int, "odd", lambda value: value > 0 and value % 2 == 1),
    "model.stem_stride": (int, *_AT_LEAST_ONE),
    "model.stem_pool": (bool, "True or False", lambda value: True),
    "model.zero_init": (bool, "True or False", lambda value: True),
    "model.dtype": (str, *_one_of("bfloat16", "float32")),
    "model.sync_batch_norm": (bool, "True or False", lambda value: True),
    "model.conv": (str, *_one_of("auto", "lax", "matmul")),
    "model.remat": (bool, "True or False", lambda value: True),
    "train.accumulate_steps": (int, *_AT_LEAST_ONE),
    "train.steps_per_call": (int, *_AT_LEAST_ONE),
    "train.skip_nonfinite": (int, *_AT_LEAST_ONE),
    "optimizer.learning_rate": (float, *_POSITIVE),
    "optimizer.schedule": (str, *_one_of("constant", "cosine")),
    "optimizer.warmup_epochs": (float, *_NOT_NEGATIVE),
    "optimizer.weight_decay": (float, *_NOT_NEGATIVE),
    "optimizer.clip_norm": (float, *_POSITIVE),
    "optimizer.label_smoothing": (float, *_BELOW_ONE),
    "early_stopping.patience": (int, *_AT_LEAST_ONE),
    "early_stopping.min_delta": (float, *_NOT_NEGATIVE),
    "parallel.mapper": (str, *_one_of("shard_map", "pmap")),
    "parallel.distributed": (bool, "True or False", lambda value: True),
    "parallel.coordinator": (str, "host:port", lambda value: bool(re.fullmatch(r"[^:]+:\d+", value))),
    "parallel.num_processes": (int, *_AT_LEAST_ONE),
    "parallel.process_id": (int, *_NOT_NEGATIVE),
    "parallel.reduce_dtype": (str, *_one_of("float32", "bfloat16")),
    "checkpoint.every_steps": (int, *_AT_LEAST_ONE),
    "log.every_steps": (int, *_AT_LEAST_ONE),
    "log.profile_steps": (int, *_AT_LEAST_ONE),
}
# How one process is started, not what the run is: a run may go on with other processes.
_OF_A_PROCESS = ("parallel.coordinator", "parallel.num_processes", "parallel.process_id")
_MAY_BE_UNSET = {
    "dataset.path",
    "train.skip_nonfinite",
    "optimizer.clip_norm",
    "parallel.distributed",
    *_OF_A_PROCESS,
    "checkpoint.every_steps",
    "log.profile_steps",
}

# Keys whose values must go together: when they do, and what the first must be, with the values filled in.
_COMBINATIONS = [
    (
        ("optimizer.warmup_epochs", "num_epochs"),
        lambda warmup, epochs: warmup < epochs,
        "it must be less than config.num_epochs, {1}",
    ),
    (
        ("batch_size", "train.accumulate_steps"),
        lambda batch_size, parts: batch_size % parts == 0,
        "it must be a multiple of config.train.accumulate_steps, {1}",
    ),
    (
        ("dataset.path", "dataset.source"),
        lambda path, source: path is None or source != "embedded",
        "it must be left out where config.dataset.source is {1!r}, which reads no files",
    ),
    (
        _OF_A_PROCESS,
        lambda *values: None not in values or not any(value is not None for value in values),
        "it and config.parallel.num_processes, {1}, and config.parallel.process_id, {2}, must be set together",
    ),
    (
        ("parallel.process_id", "parallel.num_processes"),
        lambda process, number: process is None or number is None or process < number,
        "it must be less than config.parallel.num_processes, {1}",
    ),
]


def check(config: config_dict.ConfigDict) -> None:
    """Raises UserError where values can't be meant: a line for each, with the key and what would be right."""
    values = dict(flatten(config))
    problems = [f"config.{key} is missing; configs/resnet50.py has every key" for key in _RULES if key not in values]
    for key in values.keys() - _RULES.keys():
        nearest = difflib.get_close_matches(key, _RULES, n=1)
        meant = f"is config.{nearest[0]} meant?" if nearest else "configs/resnet50.py has every key"
        problems.append(f"config.{key} is not a key of this project; {meant}")
    wrong = [key for key in values.keys() & _RULES.keys() if not _is_right(key, values[key])]
    for key in wrong:
        kind, wanted, _ = _RULES[key]
        problems.append(f"config.{key} is {values[key]!r}; it must be {wanted} ({kind.__name__})")
    for keys, works, wanted in _COMBINATIONS:
        if values.keys() >= set(keys) and not set(keys) & set(wrong) and not works(*map(values.get, keys)):
            problems.append(f"config.{keys[0]} is {values[keys[0]]}; {wanted.format(*map(values.get, keys))}")
    if problems:
        raise UserError("\n".join(sorted(problems)))


def _is_right(key: str, value: Any) -> bool:
    kind, _, is_right = _RULES[key]
    if value is None:
        return key in _MAY_BE_UNSET
    has_type = isinstance(value, (int, float) if kind is float else kind) and (
        kind is bool or not isinstance(value, bool)
    )
    return has_type and is_right(value)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every ('section.key', value) of a nested config."""
    for key, value in config.items():
        if isinstance(value, Mapping | config_dict.ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Gives {key: (our value, their value)} of every key in which two configs differ."""
    a, b = dict(flatten(ours)), dict(flatten(theirs))
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}


def refuse_differences(
    config: Mapping[str, Any], workdir: epath.Path, *, advice: str, allowed: str | None = None
) -> None:
    """Raises UserError where the run in `workdir` has another config, but for keys that begin with `allowed`."""
    different = [
        f"config.{key} is {ours!r} here and {theirs!r} there"
        for key, (ours, theirs) in differences(config, load(workdir / "config.json")).items()
        if key not in ("parallel.distributed", *_OF_A_PROCESS) and (allowed is None or not key.startswith(allowed))
    ]
    if different:
        raise UserError(f"{workdir} holds a run of another config: {', '.join(different)}. {advice}")


def load(path: epath.Path) -> config_dict.ConfigDict:
    """Reads the config.json of a run; raises UserError where there is none or it is damaged."""
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
        return config_dict.ConfigDict(values).lock()
    except FileNotFoundError:
        raise UserError(f"{path} is not there: is {path.parent} the workdir of a run?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as a run's config: {error}") from None


def save(config: config_dict.ConfigDict, path: epath.Path) -> None:
    """Writes a run's config.json, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    partial.replace(path)
