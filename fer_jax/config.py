"""The config of a run: making it from the option table, checking, comparing and storing it.

`python -m fer_jax.config > docs/options.md` writes the documentation of the options.
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import config_dict

from fer_jax.errors import UserError
from fer_jax.options.combinations import COMBINATIONS, PROCESS_KEYS
from fer_jax.options.printed import options_page
from fer_jax.options.table import OPTIONS

# Old names of options, from version 0.1, whose runs can still be read: {old name: new name}.
_RENAMED = {
    "optimizer.label_smoothing": "loss.label_smoothing",
    "train.accumulate_steps": "train.grad_accum_steps",
}


def make_config(**values: Any) -> config_dict.ConfigDict:
    """Returns a locked config with these values and the defaults of all other options.

    values: whole sections (`model={"depth": 18}`) or single options (`seed=1`, `**{"model.depth": 18}`). Raises
    UserError if one is not an option. The values themselves are checked by `check`, after the command line is applied.
    """
    nested: dict[str, Any] = {}
    for key, value in flatten(values):
        *sections, name = key.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return complete(config_dict.ConfigDict(nested))


def complete(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Fills in the default of every option that `config` lacks, locks it and returns it.

    Raises UserError if it holds a key that is not an option.
    """
    values = dict(flatten(config))
    check_keys(values)
    # Changed in place: a copy would lose the references by which a config file derives one value from another.
    with config.unlocked(), config.ignore_type():
        for key, option in OPTIONS.items():
            *sections, name = key.split(".")
            section = config
            for part in sections:
                if part not in section:
                    section[part] = config_dict.ConfigDict()
                section = section[part]
            value = values.get(key, option.default)
            if value is None and option.optional:
                section[name] = config_dict.placeholder(option.type)
            elif option.type is float and type(value) is int:
                section[name] = float(value)  # with an int the command line could only set whole numbers
            elif key not in values:
                section[name] = value
    return config.lock()


def check_keys(keys: Iterable[str]) -> None:
    """Raises UserError with a line for each key that is not an option."""
    if problems := [_unknown(key) for key in keys if key not in OPTIONS]:
        raise UserError("\n".join(problems))


def _unknown(key: str) -> str:
    nearest = [_RENAMED[key]] if key in _RENAMED else difflib.get_close_matches(key, OPTIONS, n=1)
    meant = f"is config.{nearest[0]} meant?" if nearest else "--config.help lists the options"
    return f"config.{key} is not an option; {meant}"


def check(config: Mapping[str, Any] | config_dict.ConfigDict) -> None:
    """Raises UserError with a line for each key that is missing or unknown or has an invalid value."""
    values = dict(flatten(config))
    problems = [f"config.{key} is missing" for key in OPTIONS if key not in values]
    problems += [_unknown(key) for key in values if key not in OPTIONS]
    wrong = [key for key, value in values.items() if key in OPTIONS and not OPTIONS[key].accepts(value)]
    for key in wrong:
        option = OPTIONS[key]
        problems.append(f"config.{key} is {values[key]!r}; it must be {option.check.wanted} ({option.type.__name__})")
    for keys, holds, wanted in COMBINATIONS:
        if values.keys() >= set(keys) and not set(keys) & set(wrong) and not holds(*map(values.get, keys)):
            problems.append(f"config.{keys[0]} is {values[keys[0]]}; {wanted.format(*map(values.get, keys))}")
    if problems:
        raise UserError("\n".join(sorted(problems)))


def flatten(config: Mapping[str, Any] | config_dict.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every ('section.key', value) of a nested config."""
    for key, value in config.items():
        if isinstance(value, Mapping | config_dict.ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def expand_path(path: str, option: str) -> str:
    """Returns `path` with ~ and environment variables expanded.

    Raises UserError, which names `option`, if there is no such user or variable: it would be taken for a folder's name.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    if expanded.startswith("~"):
        raise UserError(f"{option} is {path}, and there is no such user; a folder that is called so is ./{path}")
    if unset := re.search(r"\$(\w+|\{\w+\})", expanded):
        raise UserError(f"{option} is {path}, and the environment variable {unset[1].strip('{}')} is not set")
    return expanded


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (our value, their value)} for every key in which two configs differ."""
    a, b = dict(flatten(ours)), dict(flatten(theirs))
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}


def shared_values(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Returns {'config.key': value} of the options that are the same in every process of a run."""
    of_a_process = {"dataset.path", "dataset.cache_dir", "dataset.ferplus", "parallel.distributed", *PROCESS_KEYS}
    return {f"config.{key}": value for key, value in flatten(config) if key not in of_a_process}


def result_differences(config: config_dict.ConfigDict, stored: config_dict.ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns the `differences` of two complete configs in those options that change results."""
    both = [dict(flatten(config)), dict(flatten(stored))]
    different = {key: pair for key, pair in differences(config, stored).items() if _changes_results(key, both)}
    # With 'auto' a run keeps the dtype that it started with, so this is not a difference.
    if different.get("model.dtype", [None])[0] == "auto":
        del different["model.dtype"]
    return different


def refuse_differences(
    config: config_dict.ConfigDict,
    stored: config_dict.ConfigDict,
    *,
    workdir: str | os.PathLike,
    advice: str | None = None,
) -> None:
    """Raises UserError if the results of `config` would differ from those of the run in `workdir`.

    stored: the run's own config, from `load`. advice: what the message advises; another workdir if None.
    """
    # Options that change no results may differ: a run can be resumed with other logging, another cache or more epochs.
    different = result_differences(config, stored)
    if not different:
        return
    if advice is None:
        key, (value, _) = next(iter(different.items()))
        advice = (
            "Choose another --workdir for another experiment, such as "
            f"--workdir={os.fspath(workdir)}_{key.rpartition('.')[2]}_{value}, or the run's own config to go on with it"
        )
    listed = ", ".join(
        f"config.{key} is {ours!r} here and {theirs!r} there" for key, (ours, theirs) in different.items()
    )
    raise UserError(f"{os.fspath(workdir)} holds a run of another config: {listed}. {advice}")


def _changes_results(key: str, configs: list[dict[str, Any]]) -> bool:
    rule = OPTIONS[key].changes_results
    return any(map(rule, configs)) if callable(rule) else rule


def load(path: epath.Path) -> config_dict.ConfigDict:
    """Returns the config of a run, read from its config.json; see `from_stored`.

    Raises UserError if the file is missing, is damaged or was written by a newer version.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError:
        raise UserError(f"{path} is not there: is {path.parent} the workdir of a run?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as a run's config: {error}") from None
    return from_stored(values, source=str(path))


def from_stored(values: Mapping[str, Any], *, source: str) -> config_dict.ConfigDict:
    """Returns the complete config that a run, possibly of an older version, stored in its workdir or a checkpoint.

    source: where it was stored, for the UserError that is raised if a newer version wrote it.
    """
    values = {_RENAMED.get(key, key): value for key, value in flatten(values)}
    if unknown := sorted(values.keys() - OPTIONS.keys()):
        keys = ", ".join(f"config.{key}" for key in unknown)
        raise UserError(f"{source} was written by a newer version of fer_jax: this one has no {keys}")
    # Version 0.1 drew the held-out validation images with the run's seed.
    values.setdefault("dataset.split_seed", values.get("seed", OPTIONS["seed"].default))
    # The default of version 0.1, relative to the working directory of that time.
    if values.get("dataset.cache_dir") == "data/prepared":
        values["dataset.cache_dir"] = None
    return make_config(**values)


def training_view(config: Mapping[str, Any]) -> str:
    """Returns the view that a config's network is shown while it trains; 'auto' is that of its training images."""
    view = config["evaluation"]["view"]
    if view == "auto":
        return "centre_crop" if config["augment"]["crop"] else "whole"
    return view


def report_views(config: config_dict.ConfigDict) -> list[str]:
    """Returns the views that a config adds to reports beside the network's own."""
    return config.evaluation.report_views.split(",") if config.evaluation.report_views else []


def to_json(config: config_dict.ConfigDict) -> str:
    """Returns the text of a run's config.json, which `load` reads."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


if __name__ == "__main__":
    print(options_page(), end="")
