"""Compiled programs, kept in the user's cache, so that a second start compiles nothing."""

import hashlib
import os
import warnings

from fer_jax import machine
from fer_jax.system.terminal import Terminal

# Bytes of compiled programs; those that were not used for longest make room. A ResNet-50 step has some 10 MB.
_MAX_SIZE = 2**30
# Seconds: what compiles sooner is not worth a file.
_MIN_COMPILE_TIME = 0.3


def enable(terminal: Terminal) -> None:
    """Makes JAX keep compiled programs in the user's cache; a warning says where they can't be kept.

    Where the user has a cache of JAX's own (JAX_COMPILATION_CACHE_DIR, empty for none), that is left as it is. Must
    precede the first compilation.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    # A home folder may be shared by machines; code for another processor's instructions would end the process.
    flags = hashlib.sha256(" ".join(sorted(machine.processor_flags())).encode()).hexdigest()[:16]
    folder = machine.user_cache("programs") / flags
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write {folder}")
    except OSError as error:
        terminal.warn(f"compiled programs are not kept for the next start: {error}")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MAX_SIZE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_TIME)
    # A damaged entry is compiled anew and written over; JAX warns in several lines, with the entry's name.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
