"""The command: `fer-jax --config=NAME_OR_FILE [--workdir=DIR] [--mode=train|evaluate|audit] ...`, by fer_jax.main."""

import os
import signal
import sys

from absl import app, flags, logging

from fer_jax import config as config_lib
from fer_jax.errors import UserError
from fer_jax.system import command_line, exits, memory

_CONFIG = command_line.define_config_flag()
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate", "audit"], "What to do; audit looks at the data.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder or gs://bucket/...; runs/<name of config> if unset.")
_DATA = flags.DEFINE_string("data", None, "A FER-2013 csv or a folder of images, in place of config.dataset.path.")
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "What to evaluate on.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "What to evaluate: 'best', 'latest' or a step.")
_STRICT = flags.DEFINE_bool("strict", False, "Fail if the logged validation accuracy is not reproduced.")


def _command() -> None:
    config = _CONFIG.value
    if config is not None:
        if _DATA.value:
            config.dataset.path = _DATA.value
        config_lib.check(config)
    elif _MODE.value == "train":
        raise UserError("--config is missing: which experiment? For example --config=resnet50")
    elif _MODE.value == "evaluate" and not _WORKDIR.value:
        raise UserError("--workdir is missing: which run? For example --workdir=runs/resnet50")
    options = config if config is not None else config_lib.make_config()
    if _MODE.value == "audit":
        _audit(options)
        return
    # JAX takes a second to import, which a mistake needn't wait for.
    from fer_jax import evaluate, train
    from fer_jax.system import accelerators, processes
    from fer_jax.system.signals import StopRequest
    from fer_jax.workdir.paths import Workdir

    if options.parallel.deterministic:
        accelerators.use_deterministic_kernels()
    processes.join_processes(options.parallel)
    # Only now: a process that has looked for devices can't join others.
    accelerators.require_devices()
    path = _WORKDIR.value or os.path.join("runs", command_line.name_of_config())
    workdir = Workdir(path, storage_timeout=options.checkpoint.storage_timeout)
    stop = StopRequest()
    if _MODE.value == "train":
        train.train(config, workdir, stop)
    else:
        asked = {"data": _DATA.value, "split": _SPLIT.value, "checkpoint": _CHECKPOINT.value, "strict": _STRICT.value}
        evaluate.evaluate(config, workdir, **asked, stop=stop)


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
    command_line.answer_help(sys.argv, flags=["mode", "config", "workdir", "data", "split", "checkpoint", "strict"])
    if may_restart:
        memory.restart_tuned()
    app.run(main, flags_parser=command_line.parse)


def command() -> None:
    """The program fer-jax."""
    run(may_restart=True)


if __name__ == "__main__":
    command()
