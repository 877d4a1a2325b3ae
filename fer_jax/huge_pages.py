"""Huge pages for a CPU run, where the system gives them to those who ask.

A ResNet-50 step on CPU spends up to a quarter of its time on page faults of scratch buffers that the C library takes
from the system and gives back at each step. glibc asks for huge pages only if told so before the process starts.
"""

import os
import pathlib
import sys

_VARIABLE = "GLIBC_TUNABLES"
_SETTING = "glibc.malloc.hugetlb=1"
_STATE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with() -> None:
    """Starts the same command again, once, with huge pages on; does nothing where that is not for it.

    That is: no Linux, pages that come unasked or never, or GLIBC_TUNABLES set already (GLIBC_TUNABLES= switches this
    off).
    """
    if _VARIABLE in os.environ or not _STATE.exists() or "[madvise]" not in _STATE.read_text():
        return
    print(f"Restarting with {_VARIABLE}={_SETTING} (huge pages; {_VARIABLE}= to switch off)", file=sys.stderr)
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {_VARIABLE: _SETTING})
