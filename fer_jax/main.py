"""The command: `python -m fer_jax.main --config=FILE [--workdir=DIR] [--mode=train|evaluate] ...`"""

import os
import signal
import sys

from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from fer_jax import config as config_lib
from fer_jax.errors import UserError
from fer_jax.system import command_line, exits, memory

_CONFIG = command_line.define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder or gs://bucket/...; runs/<name of config> if unset.")
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "What to evaluate on.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "What to evaluate: 'best', 'latest' or a step.")
_STRICT = flags.DEFINE_bool("strict", False, "Fail if the logged validation accuracy is not reproduced.")


def _workdir_path() -> epath.Path:
    if _WORKDIR.value:
        return epath.Path(_WORKDIR.value)
    if _CONFIG.value is None:
        raise UserError("--workdir is missing: which run? For example --workdir=runs/resnet50")
    return epath.Path("runs") / epath.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def _command() -> None:
    config = _CONFIG.value
    if config is not None:
        config_lib.check(config)
    elif _MODE.value == "train":
        raise UserError("--config is missing: which experiment? For example --config=configs/resnet50.py")
    path, options = _workdir_path(), config if config is not None else config_lib.make_config()
    # JAX takes a second to import, which a mistake needn't wait for.
    from fer_jax import evaluate, train
    from fer_jax.system import accelerators, processes
    from fer_jax.system.signals import StopRequest
    from fer_jax.workdir.paths import Workdir

    if options.parallel.deterministic:
        accelerators.use_deterministic_kernels()
    processes.join_processes(options.parallel)
    workdir = Workdir(path, storage_timeout=options.checkpoint.storage_timeout)
    if _MODE.value == "train":
        train.train(config, workdir, StopRequest())
    else:
        evaluate.evaluate(
            config,
            workdir,
            split=_SPLIT.value,
            checkpoint=_CHECKPOINT.value,
            strict=_STRICT.value,
            stop=StopRequest(),
        )


def main(_) -> int:
    logging.set_verbosity(logging.WARNING)
    # Ctrl-C ends the process at once, as SIGTERM does, until there is something to save (see StopRequest).
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # TensorFlow only gathers batches here; what it says of itself on the way has nothing to do with the run.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    return exits.run(_command)


def run() -> None:
    """Runs the command of sys.argv and exits with its status."""
    command_line.answer_help(sys.argv)
    memory.restart_tuned()
    app.run(main, flags_parser=command_line.parse)


if __name__ == "__main__":
    run()
