"""The command: `python -m fer_jax.main --config=FILE [--workdir=DIR] [--mode=train|evaluate] ...`"""

import os
import signal
import sys

from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from fer_jax import config as config_lib
from fer_jax.errors import UserError
from fer_jax.system import exits
from fer_jax.system import memory as malloc

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, such as configs/resnet50.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder or gs://bucket/...; runs/<name of config> if unset.")
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "What to evaluate on.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "What to evaluate: 'best', 'latest' or a step.")


def _workdir() -> epath.Path:
    if _WORKDIR.value:
        return epath.Path(_WORKDIR.value)
    if _CONFIG.value is None:
        raise UserError("--workdir is missing: which run? For example --workdir=runs/resnet50")
    return epath.Path("runs") / epath.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def _command() -> int:
    config = _CONFIG.value
    if config is not None:
        config_lib.check(config)
    elif _MODE.value == "train":
        raise UserError("--config is missing: which experiment? For example --config=configs/resnet50.py")
    workdir = _workdir()
    # JAX takes a second to import, which a mistake needn't wait for.
    from fer_jax import evaluate, parallel, train
    from fer_jax.system.signals import StopRequest

    parallel.join_processes(config.parallel if config is not None else {})
    if _MODE.value == "train":
        return train.run(config, workdir, StopRequest())
    return evaluate.run(config, workdir, split=_SPLIT.value, checkpoint=_CHECKPOINT.value, stop=StopRequest())


def main(_) -> int:
    logging.set_verbosity(logging.WARNING)
    # Ctrl-C ends the process at once, as SIGTERM does, until there is something to save (see StopRequest).
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # TensorFlow only gathers batches here; what it says of itself on the way has nothing to do with the run.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    return exits.run(_command)


def _parse_flags(arguments: list[str]) -> list[str]:
    """Parses the command line; a mistake in it is one line and exit status 2."""
    try:
        left = flags.FLAGS(arguments)
        if _CONFIG.value is not None:
            _CONFIG.value.keys()  # a config file that failed to load says so when it is first used
        if len(left) > 1:
            raise UserError(f"{left[1]!r} is no option; options begin with --")
        return left
    except (flags.Error, UserError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        print(f"fer_jax: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def run() -> None:
    """Runs the command of sys.argv and exits with its status."""
    malloc.restart_tuned()
    app.run(main, flags_parser=_parse_flags)


if __name__ == "__main__":
    run()
