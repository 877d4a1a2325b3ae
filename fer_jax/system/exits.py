"""How the command ends where something is in its way: a line that says what, and an exit status (README)."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from fer_jax.errors import StorageError, UserError


def run(command: Callable[[], int]) -> int:
    """Gives the exit status of `command`; mistakes of ours come through as they are.

    Where a disk or another process is in the way, what the command began can't be waited for: the process ends here.
    """
    try:
        return command()
    except UserError as error:
        return _say(error, status=2)
    except (StorageError, OSError) as error:
        _leave(_say(error, status=4))
    except Exception as error:
        line = " ".join(str(error).split())
        if _is_of_storage(error):
            _leave(_say(line, status=4))
        if not _is_of_another_process(error):
            raise
        message = (
            "another process of this run is gone or can't be reached; start them all again to go on from the latest "
            f"checkpoint ({line[:200]})"
        )
        _leave(_say(message, status=5))


def _is_of_storage(error: Exception) -> bool:
    """Whether TensorFlow, which writes for TensorBoard and to object storage, could not read or write."""
    return "tensorflow" in sys.modules and isinstance(error, sys.modules["tensorflow"].errors.OpError)


def _is_of_another_process(error: Exception) -> bool:
    import jax

    return isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _say(error: Exception | str, *, status: int) -> int:
    for line in str(error).splitlines():
        print(f"fer_jax: {line}", file=sys.stderr)
    return status
