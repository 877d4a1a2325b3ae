"""The program: `fer-jax [COMMAND] [--FLAG=VALUE ...]` (python -m fer_jax): flags, start-up, and a table of commands."""

import functools
import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING

from absl import app, flags, logging
from ml_collections import config_dict

from fer_jax import config as config_lib
from fer_jax.errors import UserError
from fer_jax.exports import formats
from fer_jax.system import collector, command_line, exits, memory

if TYPE_CHECKING:
    from fer_jax.system.signals import StopRequest
    from fer_jax.workdir.paths import Workdir

_CONFIG = command_line.define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder or gs://bucket/...; runs/<name of config> if unset.")
_DATA = flags.DEFINE_string("data", None, "A FER-2013 csv or a folder of images, in place of config.dataset.path.")
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "The split to evaluate on.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The checkpoint of a run: 'best' (if unset), 'latest' or a step.")
_STRICT = flags.DEFINE_bool("strict", False, "Fail if the logged validation accuracy is not reproduced.")
_WEIGHTS = flags.DEFINE_string("weights", None, "A weights file, or 'pretrained', instead of a run.")
_ORT = flags.DEFINE_string("ort", None, "For --format=web: a folder with onnxruntime-web's files to copy.")
_EXPLAIN = flags.DEFINE_string(
    "explain",
    None,
    "Show what the network looked at: layercam, gradcam or occlusion; when evaluating, the number of errors per class.",
)
_OUT = flags.DEFINE_string("out", None, "The file or folder to write.")
_FORMAT = flags.DEFINE_enum("format", "safetensors", list(formats.FORMATS), "The format to export to.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", formats.DTYPES, "The dtype in which weights are stored.")
_DETECTOR = flags.DEFINE_string("detector", "blazeface", "The face detector: blazeface, yunet:FILE.onnx or none.")
_FACES = flags.DEFINE_enum(
    "faces", "all", ["all", "largest", "none"], "The faces to classify; none: each picture is a face."
)
_SMALL_FACES = flags.DEFINE_bool("small_faces", False, "Also find faces smaller than 7 % of a picture.")
_JSON = flags.DEFINE_string("json", None, "Write the results as JSON lines to this file; - for standard output.")
_CSV = flags.DEFINE_string("csv", None, "Write the results as rows, one per face, to this file; - for standard output.")
_SAVE = flags.DEFINE_bool("save", False, "Write annotated pictures and videos to --out, or to predictions/.")
_EVERY = flags.DEFINE_integer("every", 1, "Classify every N-th frame of a video.", lower_bound=1)
_RAW = flags.DEFINE_bool("raw", False, "Do not smooth the probabilities of a video over half a second.")
_REQUIRE_FACE = flags.DEFINE_bool("require_face", False, "Fail if no face is found.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "The address to listen on.")
_PORT = flags.DEFINE_integer("port", 8000, "The port to listen on; 0 for any free one.", 0, 65535)
_OPEN = flags.DEFINE_bool("open", False, "Open the page in the browser.")
_VERBOSE = flags.DEFINE_bool("verbose", False, "Also report that the command restarts itself with huge pages.")
_LICENCE = flags.DEFINE_string("licence", None, "The licence of the weights, a text that is stored with them.")


def _config() -> config_dict.ConfigDict:
    """Returns the checked config of --config, or the defaults where there is none."""
    if _CONFIG.value is None:
        return config_lib.make_config()
    if _DATA.value:
        _CONFIG.value.dataset.path = _DATA.value
    config_lib.check(_CONFIG.value)
    return _CONFIG.value


def _start(config: config_dict.ConfigDict) -> "StopRequest":
    """Joins the processes of the run, requires its devices, and returns a StopRequest."""
    # Imported late, as the commands' modules are: JAX takes a second, which a mistake in the flags needn't wait for.
    import jax

    from fer_jax.system import accelerators, compilation_cache, processes
    from fer_jax.system.signals import StopRequest
    from fer_jax.system.terminal import Terminal

    if config.parallel.deterministic:
        accelerators.use_deterministic_kernels()
    processes.join_processes(config.parallel)
    # Only after joining: a process that has looked for its devices can't join others any more.
    accelerators.require_devices()
    compilation_cache.enable(Terminal(is_primary=jax.process_index() == 0))
    return StopRequest()


def _workdir(config: config_dict.ConfigDict, default: str | None = None) -> "Workdir | None":
    """Returns the Workdir of --workdir, or else of `default`; None if neither is set."""
    from fer_jax.workdir.paths import Workdir

    path = _WORKDIR.value or default
    return path and Workdir(path, storage_timeout=config.checkpoint.storage_timeout)


def _default_workdir() -> str | None:
    return None if _CONFIG.value is None else os.path.join("runs", command_line.name_of_config())


def _refuse_no_network() -> None:
    """Raises UserError unless flags name one trained network."""
    if _WEIGHTS.value and _CHECKPOINT.value:
        raise UserError("--checkpoint is of a run; the file of --weights holds one network")
    if _CONFIG.value is not None and _WEIGHTS.value:
        raise UserError("--config does not go with --weights: the network has its own")
    if not (_WEIGHTS.value or _WORKDIR.value or _CONFIG.value is not None):
        raise UserError("--workdir is missing: which run? For example --workdir=runs/resnet50")


def _train() -> None:
    if _CONFIG.value is None:
        raise UserError("--config is missing: which experiment? For example --config=resnet50")
    config = _config()
    stop = _start(config)
    from fer_jax import train

    train.train(config, _workdir(config, _default_workdir()), stop)


def _evaluate() -> None:
    _refuse_no_network()
    number = _EXPLAIN.value or "0"
    if not number.isdecimal():
        raise UserError(f"--explain is {number}; with --mode=evaluate it is how many errors of each class are drawn")
    if int(number) and _WEIGHTS.value and not _WORKDIR.value:
        raise UserError("--workdir is missing: where is the sheet of --explain to be written?")
    config = _config()
    asked = {"data": _DATA.value, "split": _SPLIT.value, "strict": _STRICT.value, "stop": _start(config)}
    from fer_jax import evaluate, explain

    if int(number):
        explain.require_one_process()
    collector.resume()
    workdir = _workdir(config, _default_workdir())
    if _WEIGHTS.value:
        evaluated = evaluate.evaluate_weights(_WEIGHTS.value, workdir, **asked)
    else:
        evaluated = evaluate.evaluate(_CONFIG.value, workdir, **asked, checkpoint=_CHECKPOINT.value or "best")
    if int(number):
        explain.draw_errors(evaluated, number=int(number), workdir=workdir)


def _export() -> None:
    _refuse_no_network()
    if _WEIGHTS.value and _WORKDIR.value:
        raise UserError("--workdir and --weights name two networks, and one is exported; leave one out")
    config = _config()
    asked = {"file_format": _FORMAT.value, "out": _OUT.value, "dtype": _DTYPE.value, "licence": _LICENCE.value}
    asked["ort"] = _ORT.value
    asked |= {"checkpoint": _CHECKPOINT.value, "data": _DATA.value, "stop": _start(config)}
    from fer_jax import export

    collector.resume()
    export.export(_WEIGHTS.value or _workdir(config), **asked)


def _audit() -> None:
    config = _config()
    # Without _start: an audit needs no device and no other process.
    from fer_jax import audit

    collector.resume()
    options = config.dataset.to_dict() | ({"path": _DATA.value} if _DATA.value else {})
    audit.audit(options, _workdir(config, os.path.join("runs", "audit")))


def _path(flag: flags.FlagHolder[str | None]) -> str | None:
    """Returns the value of a flag that is a path, with ~ and environment variables expanded."""
    return flag.value and config_lib.expand_path(flag.value, f"--{flag.name}")


def _network() -> dict:
    """Requires the devices and enables the compilation cache; returns the arguments that name network and detector."""
    from fer_jax.system import accelerators, compilation_cache
    from fer_jax.system.terminal import Terminal

    # Pillow warns of odd metadata and of 90 to 179 megapixels, which don't matter as long as the pixels can be read.
    # The filter is set once for all threads that read pictures, since they share the filters.
    warnings.filterwarnings("ignore", module="PIL")
    accelerators.require_devices()
    compilation_cache.enable(Terminal(is_primary=True))
    return {"weights": _path(_WEIGHTS), "checkpoint": _CHECKPOINT.value, "detector": _DETECTOR.value}


def _predict(*words: str) -> None:
    if _OUT.value and not _SAVE.value:
        raise UserError("--out goes with --save, which writes annotated pictures there")
    from fer_jax import predict

    predict.predict(
        words,
        **_network(),
        options={"faces": _FACES.value, "small_faces": _SMALL_FACES.value, "explain": _EXPLAIN.value},
        json=_path(_JSON),
        csv=_path(_CSV),
        save=(_path(_OUT) or "predictions") if _SAVE.value else None,
        every=_EVERY.value,
        raw=_RAW.value,
        require_face=_REQUIRE_FACE.value,
    )


def _serve() -> None:
    from fer_jax import serve

    serve.serve(**_network(), host=_HOST.value, port=_PORT.value, opens=_OPEN.value)


_COMMANDS = {
    "train": command_line.Command(
        _train,
        "Trains a network, or resumes a run.",
        "config workdir data",
        "--config=resnet50 --data=fer2013.csv --workdir=runs/mine",
    ),
    "evaluate": command_line.Command(
        _evaluate,
        "Evaluates a network of a run or of a weights file.",
        "workdir weights checkpoint data split strict explain config",
        "evaluate --workdir=runs/mine --split=test",
    ),
    "export": command_line.Command(
        _export,
        "Exports a network to another format and verifies the export.",
        "workdir weights checkpoint format out dtype ort licence data",
        "export --workdir=runs/mine --format=onnx --out=net.onnx",
    ),
    "predict": command_line.Command(
        _predict,
        "Classifies the expressions of the faces in pictures and videos.",
        "weights checkpoint detector faces small_faces explain json csv save out every raw require_face",
        "predict photo.jpg",
        words="PICTURE|FOLDER|VIDEO|PATTERN|-|CAMERA ...",
    ),
    "serve": command_line.Command(
        _serve,
        "Serves a web page that classifies faces in pictures and from a webcam.",
        "weights checkpoint detector host port open",
        "serve --open",
    ),
    "audit": command_line.Command(
        _audit,
        "Reports duplicates and other irregularities of a data set.",
        "data workdir config",
        "audit --data=fer2013.csv",
    ),
}
_MODE = flags.DEFINE_enum("mode", "train", list(_COMMANDS), "The command; `fer-jax NAME` is the same as --mode=NAME.")


def main(arguments: list[str]) -> int:
    logging.set_verbosity(logging.WARNING)
    # Ctrl-C ends the process at once, as SIGTERM does, until there is something to save (see StopRequest).
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # TensorFlow only gathers batches here; its messages about itself have nothing to do with the run.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # `command_line.parse` has refused words for a command that takes none.
    words = arguments[1:]
    return exits.run(lambda: _COMMANDS[_MODE.value].run(*words))


def run(*, may_restart: bool = False) -> None:
    """Runs the command of sys.argv and exits with its status.

    may_restart: whether the process runs only this command and may be re-executed with other settings (memory.py).
    """
    command_line.refuse_windows(sys.platform)
    command_line.answer_help(sys.argv, _COMMANDS)
    # predict and serve are not restarted: a single picture is answered sooner than a restart pays off.
    if may_restart and not {"predict", "serve"} & set(sys.argv[1:2]):
        # The flags are not parsed yet.
        memory.restart_tuned(verbose="--verbose" in sys.argv)
    if may_restart:
        collector.pause()
    app.run(main, flags_parser=functools.partial(command_line.parse, commands=_COMMANDS))


def command() -> None:
    """Runs the program fer-jax."""
    run(may_restart=True)


if __name__ == "__main__":
    command()
