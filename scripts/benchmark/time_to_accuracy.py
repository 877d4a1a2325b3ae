"""Times training to an accuracy on FER-2013: python -m scripts.benchmark time_to_accuracy --target 65 [...]

    python -m scripts.benchmark time_to_accuracy --target 60 65 68 --data fer2013.csv --runs 3

Trains the same recipe (--config, with --config.KEY=VALUE as for the command) with the command itself ('ours') and with
a PyTorch program (peers/torch_recipe.py, 'pytorch'), n runs each, one after the other, with the config's seed and those
that follow it.

The clock is that of the field's speed records: it runs while epochs are trained, from the first step on, with batches,
augmentation and the moving average; it stops while the program starts, compiles, evaluates and saves. The target is
reached at the end of the first epoch after which either the weights or their moving average have that accuracy on
validation (PublicTest), in the config's single evaluation view; both programs measure both after each epoch. Runs are
trained to their end, since the end of the learning rate schedule is part of the recipe, so one run answers all targets.

A run is a line of --json, written when it ends; a run with the same recipe, data and machine that is there already
isn't repeated. A folder beside that file, with the same name, has the workdirs of our runs: their evaluations and
curves, and the checkpoints from which a stopped run resumes. Choose another file for another version of the code. Run
this on a machine that is otherwise idle.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from absl import flags
from ml_collections import config_dict, config_flags

from fer_jax import config as config_lib
from fer_jax.data.dataset import CLASS_NAMES, Dataset
from fer_jax.data.load import load_dataset
from fer_jax.errors import UserError
from fer_jax.inference.preprocessing import make_preprocessing
from fer_jax.options.table import OPTIONS
from fer_jax.system import command_line

CONTESTANTS = ("ours", "pytorch")
# The options that the PyTorch program supports, besides those that change no results.
_IN_TORCH = {
    *("seed", "num_epochs", "batch_size", "preprocessing.standardize"),
    *(f"augment.{key}" for key in ("flip", "rotation", "zoom", "shift", "crop")),
    *(f"model.{key}" for key in ("depth", "stages", "width", "stem_kernel", "stem_stride", "stem_pool", "zero_init")),
    *(f"model.{key}" for key in ("squeeze_excitation", "stochastic_depth", "dropout", "dtype", "conv")),
    *(f"optimizer.{key}" for key in ("name", "learning_rate", "schedule", "warmup_epochs", "weight_decay")),
    *("loss.label_smoothing", "ema.half_life", "evaluation.view", "model.sync_batch_norm", "dataset.source"),
    *("dataset.split_seed", "dataset.image_size", "dataset.resize", "early_stopping.min_delta"),
}
# Options that don't belong to the recipe: the seed, and the places of the data.
_PLACES = ("seed", "dataset.path", "dataset.cache_dir")


def read_config(path: str, overrides: list[str]) -> config_dict.ConfigDict:
    """Returns the config of a file with `overrides`, ['--config.KEY=VALUE', ...]; raises UserError if one is wrong."""
    matches = (re.match(r"--config\.([^=]+)=", override) for override in overrides)
    config_lib.check_keys([match[1] for match in matches if match])
    words, values = ["time_to_accuracy", *overrides], flags.FlagValues()
    # Without sys_argv, config_flags would look for the overrides in sys.argv.
    config_flags.DEFINE_config_dict("config", command_line.read_config_file(path), flag_values=values, sys_argv=words)
    try:
        words = values(words)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(str(error).splitlines()[0]) from None
    if words[1:]:
        raise UserError(f"{words[1]!r} is no option of this part, and none of the config, --config.KEY=VALUE")
    config = values.config
    config_lib.check(config)
    return config


def refuse_what_torch_lacks(config: config_dict.ConfigDict, dataset: Dataset) -> None:
    """Raises UserError if the PyTorch program would train by another recipe."""
    for key, value in config_lib.flatten(config):
        option = OPTIONS[key]
        if option.changes_results and key not in _IN_TORCH and value != option.default:
            raise UserError(
                f"config.{key} is {value!r}, which the PyTorch program doesn't have; leave it at {option.default!r}, "
                "or take --contestants ours"
            )
    if config.optimizer.name != "sgd":
        raise UserError("config.optimizer.name is adam; the PyTorch program has sgd alone")
    if config.model.depth not in (10, 18, 34, 50):
        raise UserError(f"config.model.depth is {config.model.depth}; the PyTorch program has 10, 18, 34 and 50")
    if dataset.image_shape[2] != 1 or dataset.class_names != CLASS_NAMES:
        raise UserError(f"{dataset.name} is not of grey images and FER-2013's classes, as the PyTorch program's are")
    if make_preprocessing(config, dataset.image_shape).view not in ("whole", "centre_crop"):
        raise UserError(f"config.evaluation.view is {config.evaluation.view}; the clock is for a view of one picture")


def run_ours(arguments, config: config_dict.ConfigDict, dataset: Dataset, settings: dict) -> dict:
    """Trains with the command; returns {epochs: [{epoch, seconds, accuracy}], versions, workdir}."""
    recipe = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    workdir = arguments.json.with_suffix("") / f"{recipe}_seed{config.seed}"
    command = [sys.executable, "-m", "fer_jax.main", f"--config={arguments.config}", *arguments.overrides]
    command += [f"--config.seed={config.seed}", f"--workdir={workdir}"]
    # Patience only ends a run early, and all epochs are needed here.
    command += [f"--config.early_stopping.patience={config.num_epochs}"]
    command += [f"--data={arguments.data}"] if arguments.data else []
    if status := subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise UserError(f"the command ended with status {status}")
    events = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    epochs = read_epochs(events, batch_size=config.batch_size)
    import jax

    return {"epochs": epochs, "versions": {"jax": jax.__version__}, "workdir": os.fspath(workdir)}


def read_epochs(events: list[dict], *, batch_size: int) -> list[dict]:
    """Returns [{epoch, seconds, loss, accuracy: {kind: share}}] from the metrics.jsonl of a complete run."""
    epochs, steps_before = [], 0
    for number in sorted({event["epoch"] for event in events}):
        of_epoch = [event for event in events if event["epoch"] == number]
        # The last event's speed is the mean of the epoch, over the seconds spent on training.
        last = [event for event in of_epoch if event["kind"] == "train"][-1]
        images = (last["step"] - steps_before) * batch_size
        steps_before = last["step"]
        accuracy = {event["kind"]: event["accuracy"] for event in of_epoch if event["kind"] != "train"}
        seconds = images / last["images_per_second"]
        epochs.append({"epoch": number, "seconds": seconds, "loss": last["loss"], "accuracy": accuracy})
    return epochs


def run_pytorch(arguments, config: config_dict.ConfigDict, dataset: Dataset, settings: dict) -> dict:
    """Trains with the PyTorch program; returns {epochs, versions, how}, the latter the program's first line."""
    with tempfile.TemporaryDirectory() as folder:
        return _run_pytorch(arguments, config, dataset, settings, pathlib.Path(folder))


def _run_pytorch(
    arguments, config: config_dict.ConfigDict, dataset: Dataset, settings: dict, folder: pathlib.Path
) -> dict:
    recipe, data = folder / "recipe.json", folder / "data.npz"
    values = config.to_dict()
    # The view may be chosen by other options, so it is passed as resolved.
    values["evaluation"]["view"] = make_preprocessing(config, dataset.image_shape).view
    recipe.write_text(json.dumps(values))
    splits = {name: dataset.split(name) for name in ("train", "validation")}
    arrays = {f"{name}_images": split.images for name, split in splits.items()}
    np.savez(data, **arrays, **{f"{name}_labels": split.labels for name, split in splits.items()})
    command = [arguments.peers_python, "-m", "scripts.benchmark.peers.torch_recipe", str(recipe), str(data)]
    epochs, how = [], None
    with subprocess.Popen([*command, f"--compile={arguments.compile}"], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(f"pytorch, seed {config.seed}: {line.strip()}", file=sys.stderr, flush=True)
            said = json.loads(line)
            if how is None:
                how = said
                if (how["device"] == "cpu") != (settings["accelerator"] is None):
                    process.kill()
                    raise UserError(
                        f"JAX computes on {settings['accelerator'] or 'cpu'} and {arguments.peers_python}'s PyTorch on "
                        f"{how['device']}; install what is missing, or set JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES="
                    )
            else:
                epochs.append(said)
    if process.returncode:
        raise UserError(f"the PyTorch program ended with status {process.returncode}")
    return {"epochs": epochs, "versions": {"torch": how["torch"]}, "how": how}


RUN: dict[str, Callable] = {"ours": run_ours, "pytorch": run_pytorch}


def reached(epochs: list[dict], target: float) -> tuple[int, float] | None:
    """Returns the first epoch that reaches `target`, a fraction, and the seconds trained until its end, or None."""
    seconds = 0.0
    for epoch in epochs:
        seconds += epoch["seconds"]
        if max(epoch["accuracy"].values()) >= target:
            return epoch["epoch"], seconds
    return None


def spread(values: list[float], digits: int) -> str:
    """Returns the mean of values and, of two or more, their standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(rows: dict[str, list[dict]], targets: list[float]) -> str:
    """Returns the table in Markdown; rows: each contestant's runs. targets: in percent."""
    titles = [*(f"minutes to {target:g} %" for target in targets), "minutes in all", "best PublicTest, %"]
    lines = [f"| | runs | {' | '.join(titles)} |", f"|---|---:|{'---:|' * len(titles)}"]
    for name, runs in rows.items():
        cells = []
        for target in targets:
            found = [reached(run["epochs"], target / 100) for run in runs]
            minutes = [seconds / 60 for _, seconds in filter(None, found)]
            # A mean over only the runs that reach the target flatters a contestant that seldom does.
            share = "" if len(minutes) == len(runs) else f" ({len(minutes)} of {len(runs)} runs)"
            cells.append(f"{spread(minutes, 2)}{share}" if minutes else "not reached")
        cells.append(spread([sum(epoch["seconds"] for epoch in run["epochs"]) / 60 for run in runs], 2))
        best = [100 * max(max(epoch["accuracy"].values()) for epoch in run["epochs"]) for run in runs]
        cells.append(spread(best, 2))
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def settings_of(name: str, arguments, config: config_dict.ConfigDict, dataset: Dataset, machine: dict) -> dict:
    """Returns the settings that identify a run of a contestant, except for its seed."""
    kept = {key: value for key, value in config_lib.flatten(config) if key not in _PLACES}
    kept = {key: value for key, value in kept.items() if value != OPTIONS[key].default}
    settings = {"contestant": name, "config": kept, "dataset_fingerprint": dataset.fingerprint}
    settings |= {key: machine[key] for key in ("processor", "cores", "accelerator")}
    return settings | ({"compile": arguments.compile} if name == "pytorch" else {})


def describe_machine() -> dict:
    # Imported here, since __main__ imports this module; it has the rest of a machine's description.
    from scripts.benchmark import __main__ as benchmark

    return benchmark.describe_machine() | {"accelerator": find_accelerator()}


def find_accelerator() -> str | None:
    """Returns JAX's name for the accelerator that it computes on, or None if that is the CPU."""
    # JAX starts in a process of its own, since this process would keep a part of the device's memory.
    code = "import jax; device = jax.devices()[0]; print(device.device_kind if device.platform != 'cpu' else '')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"JAX finds no device; {sys.executable} ended with status {done.returncode}")
    return done.stdout.strip() or None


def read_rows(path: pathlib.Path) -> list[dict]:
    """Returns the runs in a file, without a line whose writing was interrupted."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def has_torch(python: str) -> bool:
    return subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL, check=False).returncode == 0


def measure(arguments) -> None:
    config = read_config(arguments.config, arguments.overrides)
    if not arguments.json.suffix or arguments.json.is_dir():
        raise UserError(
            f"--json={arguments.json} must be a file with a suffix, as .jsonl; workdirs are in that without"
        )
    if not shutil.which(arguments.peers_python):
        raise UserError(f"--peers-python={arguments.peers_python}: there is no such program")
    # With several GPUs, ours would use all, and the PyTorch program only the first.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if arguments.data:
        config.dataset.path = os.fspath(arguments.data)
    dataset, machine, path = load_dataset(config.dataset), describe_machine(), arguments.json
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['accelerator'] or 'no GPU'}", flush=True)
    print(dataset.describe(), flush=True)
    contestants = list(arguments.contestants)
    if "pytorch" in contestants:
        refuse_what_torch_lacks(config, dataset)
        if not has_torch(arguments.peers_python):
            contestants.remove("pytorch")
            print(f"pytorch is left out: {arguments.peers_python} has no torch (--peers-python names another)")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict]] = {name: [] for name in contestants}
    # The contestants alternate, so that changes of the machine over the hours affect both.
    first = config.seed
    for seed in range(first, first + arguments.runs):
        for name in contestants:
            settings = settings_of(name, arguments, config, dataset, machine)
            done = [row for row in read_rows(path) if row["settings"] == settings and row["seed"] == seed]
            if done:
                print(f"{name}, seed {seed}: is in {path} already, of {done[0]['started']}", flush=True)
            else:
                config.seed, started = seed, time.strftime("%Y-%m-%d %H:%M:%S")
                row = RUN[name](arguments, config, dataset, settings)
                done = [{"settings": settings, "seed": seed, "started": started, "machine": machine, **row}]
                with path.open("a") as file:
                    file.write(json.dumps(done[0]) + "\n")
            rows[name].append(done[0])
    print(f"\n{table(rows, arguments.target)}\n\n{path}")


def percent(text: str) -> float:
    value = float(text)
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is no accuracy in percent, above 0 and up to 100")
    return value


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark time_to_accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--target", type=percent, nargs="+", default=[60.0, 65.0, 68.0], help="in percent")
    parser.add_argument("--config", default="configs/wrn16_4.py", help="(default: %(default)s)")
    parser.add_argument("--data", type=pathlib.Path, help="FER-2013, as --data of the command (default: as there)")
    parser.add_argument("--runs", type=int, default=1, help="of each contestant, each of the next seed")
    parser.add_argument("--contestants", choices=CONTESTANTS, nargs="+", default=list(CONTESTANTS))
    parser.add_argument(
        "--peers-python", default=sys.executable, help="the interpreter that has torch, if not this one"
    )
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="torch.compile; auto: faster")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("runs/benchmark/time_to_accuracy.jsonl"))
    arguments, arguments_left = parser.parse_known_args(argv)
    arguments.overrides = arguments_left
    try:
        measure(arguments)
    except UserError as error:
        sys.exit(f"error: {'; '.join(str(error).splitlines())}")
