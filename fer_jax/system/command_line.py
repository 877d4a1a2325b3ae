"""The command line: the --config flag, the help, and one line for every mistake."""

import importlib.metadata
import os
import pathlib
import re
import runpy
import sys
import textwrap
import traceback

from absl import flags as absl_flags
from ml_collections import config_dict, config_flags

from fer_jax import config as config_lib
from fer_jax.errors import UserError
from fer_jax.options.printed import describe_options

_PACKAGE = pathlib.Path(__file__).parents[1]
# Beside the package in a clone, in it where it is installed.
CONFIGS = next((path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()), _PACKAGE)


class _ConfigFile(absl_flags.ArgumentParser):
    def parse(self, argument: str) -> config_dict.ConfigDict:
        return read_config_file(argument)


def define_config_flag() -> absl_flags.FlagHolder:
    """Defines --config=FILE, whose options --config.key=value sets."""
    holder = config_flags.DEFINE_config_file(
        "config", None, "The experiment: a file, or the name of one that is packaged, such as resnet50."
    )
    # The parser of ml_collections fills in no defaults, and --config.key=value can only set a key that is there.
    absl_flags.FLAGS["config"].parser = _ConfigFile()
    return holder


def refuse_windows(platform: str) -> None:
    """Exits with status 2 on Windows, which lacks what the files of a run are locked with."""
    if platform == "win32":
        print("fer_jax: it runs on Linux and macOS; on Windows, inside WSL", file=sys.stderr)
        sys.exit(2)


def answer_help(arguments: list[str], flags: list[str]) -> None:
    """Prints what --help (of the flags listed), --config.help or --version ask for, and exits with status 0."""
    # Before the flags are parsed: there is no --config to ask yet, and absl would list a hundred flags of others.
    if "--config.help" in arguments:
        print(describe_options())
    elif {"--help", "-h", "-help", "--helpshort"} & set(arguments):
        print(_describe_flags(flags))
    elif "--version" in arguments:
        print(f"fer_jax {importlib.metadata.version('fer_jax')}")
    else:
        return
    sys.exit(0)


def _describe_flags(names: list[str]) -> str:
    lines = ["Trains a facial-expression classifier, evaluates one, exports it to a file, or audits the data.", ""]
    for name in names:
        flag = absl_flags.FLAGS[name]
        values = "|".join(getattr(flag.parser, "enum_values", [])) or ("" if flag.boolean else name.upper())
        default = f" ({flag.default})" if flag.default and not flag.boolean else ""
        about = re.sub(r"^<.*?>: ", "", flag.help)  # absl lists the values of an enum there
        lines.append(f"  {f'--{name}={values}' if values else f'--{name}':<35}{about}{default}")
    return "\n".join(
        [
            *lines,
            f"  {'--config.KEY=VALUE':<35}Any option of the config; --config.help lists them.",
            f"  {'--version':<35}The version.",
            "",
            f"Packaged experiments: {_packaged()}",
            "",
            "  fer-jax --config=resnet50 --data=fer2013.csv --workdir=runs/mine",
            "  fer-jax --mode=evaluate --workdir=runs/mine --split=test",
            "  fer-jax --mode=export --workdir=runs/mine --out=net.safetensors --dtype=float16",
            "  fer-jax --mode=audit --data=fer2013.csv",
        ]
    )


def _packaged() -> str:
    return ", ".join(sorted(path.stem for path in CONFIGS.glob("*.py")))


def name_of_config() -> str:
    """Returns the name of the experiment that --config asks for: of resnet50 or configs/resnet50.py, resnet50."""
    return pathlib.Path(config_flags.get_config_filename(absl_flags.FLAGS["config"])).stem


def parse(arguments: list[str]) -> list[str]:
    """Parses the flags and returns the command's name; a mistake is printed in one line and exits with status 2."""
    try:
        # ml_collections would say no more than the part of the key that it doesn't find.
        matches = (re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in arguments)
        keys = [match[1] for match in matches if match]
        config_lib.check_keys(keys)
        # absl would call it an unknown flag.
        if keys and not any(re.match(r"--?config(=|$)", argument) for argument in arguments):
            raise UserError(
                f"--config.{keys[0]} sets an option of an experiment, and --config, which names one, is missing; "
                "--data=PATH names the data of a run or file that is evaluated"
            )
        left = absl_flags.FLAGS(arguments)
        if len(left) > 1:
            raise UserError(f"{left[1]!r} is no option; options begin with --")
        return left
    except (absl_flags.Error, UserError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        print(f"fer_jax: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def read_config_file(argument: str) -> config_dict.ConfigDict:
    """Returns the complete config that a Python file makes.

    argument: FILE, which has a function get_config(), or FILE:TEXT, for get_config(TEXT); in place of FILE the name of
    a file of `configs/`, without .py. Whatever the file raises becomes a UserError of one line that names the file and
    the line.
    """
    path, *text = argument.split(":", 1)
    path = config_lib.expand_path(path, "--config")
    # A file first: whoever has one of that name means it.
    if not os.path.isfile(path):
        packaged = CONFIGS / f"{path}.py"
        if os.sep in path or not packaged.is_file():
            raise UserError(
                f"--config={argument}: there is no file {path}, and no experiment of that name: {_packaged()}"
            )
        path = str(packaged)
    try:
        names = runpy.run_path(path)
        if "get_config" not in names:
            raise UserError("there is no function get_config")
        config = names["get_config"](*text)
        if not isinstance(config, config_dict.ConfigDict):
            raise UserError(f"get_config must return what make_config returns, not {type(config).__name__}")
        return config_lib.complete(config)
    except Exception as error:
        raise UserError(f"{_location(error, path)}: {_in_one_line(error)}") from error


def _location(error: Exception, path: str) -> str:
    """Returns the innermost file:line of the traceback that is in the config's folder, or else the config's path."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    folder = os.path.dirname(os.path.abspath(path))
    places = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.isfile(frame.filename) and os.path.dirname(os.path.abspath(frame.filename)) == folder
    ]
    return places[-1] if places else path


def _in_one_line(error: Exception) -> str:
    if isinstance(error, UserError):
        return "; ".join(str(error).splitlines())
    message = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    # ml_collections lists a whole config to say that a key isn't in it.
    message = re.sub(r"^'(.*) Other fields present: .*?(Did you mean .*|)'$", r"\1 \2", message)
    return f"{type(error).__name__}: {textwrap.shorten(message, 250)}" if message else type(error).__name__
