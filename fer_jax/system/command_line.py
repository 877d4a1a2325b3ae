"""The command line: commands and their flags, the --config flag, the help, and a one-line message for every mistake."""

import importlib.metadata
import os
import pathlib
import re
import runpy
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping
from typing import NamedTuple

from absl import flags as absl_flags
from ml_collections import config_dict, config_flags

from fer_jax import config as config_lib
from fer_jax.errors import UserError
from fer_jax.options.printed import describe_options

_PACKAGE = pathlib.Path(__file__).parents[1]
# configs/ is beside the package in a clone and inside it in an installation.
CONFIGS = next((path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()), _PACKAGE)


class Command(NamedTuple):
    """A command of the program, called as `fer-jax NAME ...` or by --mode=NAME.

    run: executes the command; receives the positional arguments if it has `words`. about: its description in the help.
    flags: the flags that it takes. example: what follows `fer-jax`. words: what its positional arguments are, or '' if
    it takes none.
    """

    run: Callable
    about: str
    flags: str
    example: str
    words: str = ""


class _ConfigFile(absl_flags.ArgumentParser):
    def parse(self, argument: str) -> config_dict.ConfigDict:
        return read_config_file(argument)


def define_config_flag() -> absl_flags.FlagHolder:
    """Defines --config=FILE, and --config.key=value for the options in that file."""
    holder = config_flags.DEFINE_config_file(
        "config", None, "The experiment: a file, or the name of a packaged one, such as resnet50."
    )
    # The parser of ml_collections fills in no defaults, and --config.key=value can only set a key that exists.
    absl_flags.FLAGS["config"].parser = _ConfigFile()
    return holder


def refuse_windows(platform: str) -> None:
    """Exits with status 2 on Windows, which lacks the locks that protect a run's files."""
    if platform == "win32":
        print("fer_jax: it runs on Linux and macOS; on Windows, inside WSL", file=sys.stderr)
        sys.exit(2)


def answer_help(arguments: list[str], commands: Mapping[str, Command]) -> None:
    """Prints the answer to --help (of a command, if one is named), --config.help or --version, and exits with 0."""
    # Before the flags are parsed, since no --config is known yet and absl would list a hundred flags of other modules.
    if "--config.help" in arguments:
        print(describe_options())
    elif {"--help", "-h", "-help", "--helpshort"} & set(arguments):
        name = next(iter(arguments[1:]), "")
        print(_describe_command(name, commands[name]) if name in commands else _describe_program(commands))
    elif "--version" in arguments:
        print(f"fer_jax {importlib.metadata.version('fer_jax')}")
    else:
        return
    sys.exit(0)


def _describe_program(commands: Mapping[str, Command]) -> str:
    return "\n".join(
        [
            "Trains facial-expression classifiers and applies them to pictures and videos.",
            "",
            *(f"  {f'fer-jax {name}':<35}{command.about}" for name, command in commands.items()),
            f"  {'fer-jax COMMAND --help':<35}Shows the flags of a command. Without a command, train is meant.",
            "",
            *map(_describe_flag, ["mode", *commands["train"].flags.split(), "verbose"]),
            f"  {'--config.KEY=VALUE':<35}Any option of the config; --config.help lists them.",
            f"  {'--version':<35}The version.",
            "",
            f"Packaged experiments: {_packaged()}",
            "",
            *(f"  fer-jax {command.example}" for command in commands.values()),
        ]
    )


def _describe_command(name: str, command: Command) -> str:
    usage = " ".join(filter(None, ["fer-jax", name, command.words, "[--FLAG=VALUE ...]"]))
    flags = map(_describe_flag, command.flags.split())
    return "\n".join([usage, "", command.about, "", *flags, "", f"  fer-jax {command.example}"])


def _describe_flag(name: str) -> str:
    flag = absl_flags.FLAGS[name]
    values = "|".join(getattr(flag.parser, "enum_values", [])) or ("" if flag.boolean else name.upper())
    default = f" ({flag.default})" if flag.default and not flag.boolean else ""
    about = re.sub(r"^<.*?>: ", "", flag.help)  # absl lists the values of an enum there
    left = f"--{name}={values}" if values else f"--{name}"
    # A long list of values gets a line of its own.
    return f"  {left:<35}{about}{default}" if len(left) < 35 else f"  {left}\n  {'':<35}{about}{default}"


def _packaged() -> str:
    return ", ".join(sorted(path.stem for path in CONFIGS.glob("*.py")))


def name_of_config() -> str:
    """Returns the name of the experiment in --config: 'resnet50' for both resnet50 and configs/resnet50.py."""
    return pathlib.Path(config_flags.get_config_filename(absl_flags.FLAGS["config"])).stem


def parse(arguments: list[str], commands: Mapping[str, Command]) -> list[str]:
    """Parses the flags and returns the program's name and the positional arguments.

    If the first argument names a command, it becomes the value of --mode. A mistake is printed on one line, and the
    process exits with status 2.
    """
    try:
        arguments = _with_mode(arguments, commands)
        # ml_collections would only name the part of the key that it doesn't find.
        matches = (re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in arguments)
        keys = [match[1] for match in matches if match]
        config_lib.check_keys(keys)
        # Without --config, absl would only report an unknown flag.
        if keys and not any(re.match(r"--?config(=|$)", argument) for argument in arguments):
            raise UserError(
                f"--config.{keys[0]} sets an option of an experiment, and --config, which names one, is missing; "
                "--data=PATH names the data of a run or file that is evaluated"
            )
        left = absl_flags.FLAGS(arguments)
        _refuse_others(left[1:], commands)
        return left
    except (absl_flags.Error, UserError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        print(f"fer_jax: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _with_mode(arguments: list[str], commands: Mapping[str, Command]) -> list[str]:
    program, *others = arguments
    if not others or others[0] not in commands:
        return arguments
    # absl would silently use the last --mode.
    if any(re.match(r"--?mode(=|$)", argument) for argument in others):
        raise UserError(f"{others[0]} and --mode both say what to do; leave one out")
    return [program, f"--mode={others[0]}", *others[1:]]


def _refuse_others(words: list[str], commands: Mapping[str, Command]) -> None:
    """Raises UserError for positional arguments or flags that the command doesn't take."""
    if not commands:
        return
    mode = absl_flags.FLAGS["mode"].value
    if words and not commands[mode].words:
        raise UserError(
            f"{words[0]!r} is no option, which begins with --, and no command, which comes first: {', '.join(commands)}"
        )
    # Refused rather than ignored, because whoever gives a flag expects it to have an effect.
    for name in dict.fromkeys(name for command in commands.values() for name in command.flags.split()):
        if absl_flags.FLAGS[name].present and name not in commands[mode].flags.split():
            takers = [f"--mode={other}" for other, command in commands.items() if name in command.flags.split()]
            raise UserError(f"--{name} goes with {' and '.join(takers)}, not with --mode={mode}")
        # An unset variable of the shell, as in --data="$FER", which would silently be the default.
        if absl_flags.FLAGS[name].present and absl_flags.FLAGS[name].value == "":
            raise UserError(f"--{name} is empty; give it a value or leave it out")


def read_config_file(argument: str) -> config_dict.ConfigDict:
    """Returns the complete config that a Python file defines.

    argument: FILE, which has a function get_config(), or FILE:TEXT, for get_config(TEXT). FILE may also be the name of
    a file in `configs/`, without .py. Any exception that the file raises becomes a one-line UserError that names the
    file and the line.
    """
    path, *text = argument.split(":", 1)
    path = config_lib.expand_path(path, "--config")
    # A file takes precedence over a packaged experiment: whoever has a file of that name means the file.
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
    # ml_collections lists the whole config in its message about a missing key.
    message = re.sub(r"^'(.*) Other fields present: .*?(Did you mean .*|)'$", r"\1 \2", message)
    return f"{type(error).__name__}: {textwrap.shorten(message, 250)}" if message else type(error).__name__
