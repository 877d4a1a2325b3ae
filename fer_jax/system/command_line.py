"""The command line: the --config flag, --config.help, and one line for every mistake."""

import os
import re
import runpy
import sys
import textwrap
import traceback

from absl import flags
from ml_collections import config_dict, config_flags

from fer_jax import config as config_lib
from fer_jax.errors import UserError


class _ConfigFile(flags.ArgumentParser):
    def parse(self, argument: str) -> config_dict.ConfigDict:
        return read_config_file(argument)


def define_config_flag() -> flags.FlagHolder:
    """Defines --config=FILE, whose options --config.key=value sets."""
    holder = config_flags.DEFINE_config_file(
        "config", None, "The experiment, such as configs/resnet50.py; --config.help lists its options."
    )
    # The parser of ml_collections fills in no defaults, and --config.key=value can only set a key that is there.
    flags.FLAGS["config"].parser = _ConfigFile()
    return holder


def answer_help(arguments: list[str]) -> None:
    """Prints the options and exits with status 0 if `arguments` ask for them by --config.help."""
    # Before the flags are parsed: there is no --config to ask yet.
    if "--config.help" in arguments:
        print(config_lib.describe_options())
        sys.exit(0)


def parse(arguments: list[str]) -> list[str]:
    """Parses the flags and returns the command's name; a mistake is printed in one line and exits with status 2."""
    try:
        # ml_collections would say no more than the part of the key that it doesn't find.
        keys = (re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in arguments)
        config_lib.check_keys(match[1] for match in keys if match)
        left = flags.FLAGS(arguments)
        if len(left) > 1:
            raise UserError(f"{left[1]!r} is no option; options begin with --")
        return left
    except (flags.Error, UserError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        print(f"fer_jax: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def read_config_file(argument: str) -> config_dict.ConfigDict:
    """Returns the complete config that a Python file makes.

    argument: FILE, which has a function get_config(), or FILE:TEXT, for get_config(TEXT). Whatever the file raises
    becomes a UserError of one line that names the file and the line.
    """
    path, *text = argument.split(":", 1)
    if not os.path.isfile(path):
        raise UserError(f"--config={argument}: there is no file {path}")
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
