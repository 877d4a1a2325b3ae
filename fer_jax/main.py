"""The command: `fer-jax --config=NAME_OR_FILE [--workdir=DIR] [--mode=MODE] ...` (python -m fer_jax.main)."""

import os
import signal
import sys

from absl import app, flags, logging

from fer_jax import config as config_lib
from fer_jax.errors import UserError
from fer_jax.system import command_line, exits, memory

_CONFIG = command_line.define_config_flag()
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate", "export", "audit"], "What to do; audit looks at the data."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder or gs://bucket/...; runs/<name of config> if unset.")
_DATA = flags.DEFINE_string("data", None, "A FER-2013 csv or a folder of images, in place of config.dataset.path.")
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "What to evaluate on.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "What to evaluate or export: 'best' (if unset), 'latest', a step."
)
_STRICT = flags.DEFINE_bool("strict", False, "Fail if the logged validation accuracy is not reproduced.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Evaluate this weights file, or 'pretrained', instead of a run.")
_EXPLAIN = flags.DEFINE_integer(
    "explain", 0, "How many errors of each class are drawn with what the network looked at.", lower_bound=0
)
# The four of --mode=export.
_OUT = flags.DEFINE_string("out", None, "The file that --mode=export writes.")
_FORMAT = flags.DEFINE_enum("format", "safetensors", ["safetensors"], "The format of that file.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16", "bfloat16"], "The dtype of its kernels.")
_LICENCE = flags.DEFINE_string("licence", None, "A text on the licence of the weights, stored in the file.")
_SHOWN = ["mode", "config", "workdir", "data", "split", "checkpoint", "strict", "weights", "explain"]
_SHOWN += ["out", "format", "dtype", "licence"]


def _check_flags() -> None:
    """Raises UserError where flags are missing or don't go together."""
    mode, config, weights = _MODE.value, _CONFIG.value, _WEIGHTS.value
    # Refused rather than ignored: whoever gives a flag believes that it has an effect.
    if weights and mode != "evaluate":
        raise UserError("--weights goes with --mode=evaluate; --config.model.init=FILE trains from a weights file")
    if _EXPLAIN.value and mode != "evaluate":
        raise UserError("--explain goes with --mode=evaluate, whose errors it draws")
    if _EXPLAIN.value and weights and not _WORKDIR.value:
        raise UserError("--workdir is missing: where is the sheet of --explain to be written?")
    if weights and _CHECKPOINT.value:
        raise UserError("--checkpoint is of a run; the file of --weights holds one network")
    if config is not None and (weights or mode == "export"):
        raise UserError(
            f"--config does not go with --{'weights' if weights else 'mode=export'}: the network has its own"
        )
    if config is None and mode == "train":
        raise UserError("--config is missing: which experiment? For example --config=resnet50")
    if config is None and not _WORKDIR.value and not weights and mode != "audit":
        raise UserError("--workdir is missing: which run? For example --workdir=runs/resnet50")


def _command() -> None:
    _check_flags()
    config = _CONFIG.value
    if config is not None:
        if _DATA.value:
            config.dataset.path = _DATA.value
        config_lib.check(config)
    options = config if config is not None else config_lib.make_config()
    if _MODE.value == "audit":
        _audit(options)
        return
    # JAX takes a second to import, which a mistake needn't wait for.
    from fer_jax import evaluate, explain, export, train
    from fer_jax.system import accelerators, processes
    from fer_jax.system.signals import StopRequest
    from fer_jax.workdir.paths import Workdir

    if options.parallel.deterministic:
        accelerators.use_deterministic_kernels()
    processes.join_processes(options.parallel)
    # Only now: a process that has looked for devices can't join others.
    accelerators.require_devices()
    path = _WORKDIR.value or (None if config is None else os.path.join("runs", command_line.name_of_config()))
    workdir = path and Workdir(path, storage_timeout=options.checkpoint.storage_timeout)
    stop = StopRequest()
    checkpoint = _CHECKPOINT.value or "best"
    if _MODE.value == "train":
        train.train(config, workdir, stop)
    elif _MODE.value == "export":
        asked = {"out": _OUT.value, "dtype": _DTYPE.value, "data": _DATA.value, "licence": _LICENCE.value}
        export.export(workdir, **asked, checkpoint=checkpoint, stop=stop)
    else:
        asked = {"data": _DATA.value, "split": _SPLIT.value, "strict": _STRICT.value, "stop": stop}
        if _WEIGHTS.value:
            evaluated = evaluate.evaluate_weights(_WEIGHTS.value, workdir, **asked)
        else:
            evaluated = evaluate.evaluate(config, workdir, **asked, checkpoint=checkpoint)
        if _EXPLAIN.value:
            explain.draw_errors(evaluated, number=_EXPLAIN.value, workdir=workdir)


def _audit(config) -> None:
    # Needs no device, and no other process.
    from fer_jax import audit
    from fer_jax.workdir.paths import Workdir

    options = config.dataset.to_dict() | ({"path": _DATA.value} if _DATA.value else {})
    workdir = _WORKDIR.value or os.path.join("runs", "audit")
    audit.audit(options, Workdir(workdir, storage_timeout=config.checkpoint.storage_timeout))


def main(_) -> int:
    logging.set_verbosity(logging.WARNING)
    # Ctrl-C ends the process at once, as SIGTERM does, until there is something to save (see StopRequest).
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # TensorFlow only gathers batches here; what it says of itself on the way has nothing to do with the run.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    return exits.run(_command)


def run(*, may_restart: bool = False) -> None:
    """Runs the command of sys.argv and exits with its status.

    may_restart: whether the process is the command's own and may be replaced by one with other settings (memory.py).
    """
    command_line.refuse_windows(sys.platform)
    command_line.answer_help(sys.argv, flags=_SHOWN)
    if may_restart:
        memory.restart_tuned()
    app.run(main, flags_parser=command_line.parse)


def command() -> None:
    """The program fer-jax."""
    run(may_restart=True)


if __name__ == "__main__":
    command()
