"""The command: `python -m fer_jax.main --config=FILE [--workdir=DIR] [--mode=train|evaluate] ...`"""

import os
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from fer_jax import config as config_lib
from fer_jax import huge_pages
from fer_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, such as configs/resnet50.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder. Default: runs/<name of the config file>.")
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "What to evaluate on.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "What to evaluate: 'best', 'latest' or a step.")


def _train(config, workdir, stop) -> int:
    from fer_jax import train

    return train.run(config, workdir, stop)


def _evaluate(config, workdir, stop) -> int:
    from fer_jax import evaluate

    return evaluate.run(config, workdir, split=_SPLIT.value, checkpoint=_CHECKPOINT.value, stop=stop)


_MODES = {"train": _train, "evaluate": _evaluate}
_MODE = flags.DEFINE_enum("mode", "train", list(_MODES), "What to do.")


def _workdir() -> pathlib.Path:
    if _WORKDIR.value:
        return pathlib.Path(_WORKDIR.value)
    if _CONFIG.value is None:
        raise UserError("--workdir is missing: which run? For example --workdir=runs/resnet50")
    return pathlib.Path("runs") / pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def main(_) -> int:
    logging.set_verbosity(logging.WARNING)
    # TensorFlow only gathers batches here; what it says of itself on the way has nothing to do with the run.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        if _CONFIG.value is None and _MODE.value == "train":
            raise UserError("--config is missing: which experiment? For example --config=configs/resnet50.py")
        if _CONFIG.value is not None:
            config_lib.check(_CONFIG.value)
            if _CONFIG.value.parallel.distributed:
                from fer_jax import parallel

                parallel.initialize_processes()
        from fer_jax.signals import StopRequest

        with StopRequest() as stop:
            return _MODES[_MODE.value](_CONFIG.value, _workdir(), stop)
    except UserError as error:
        print(f"fer_jax: {error}", file=sys.stderr)
        return 2


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
    huge_pages.restart_with()
    app.run(main, flags_parser=_parse_flags)


if __name__ == "__main__":
    run()
