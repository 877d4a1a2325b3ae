"""What the rest asks of the machine it runs on: the user's cache and what the processor can do."""

import os
import pathlib


def user_cache(name: str) -> pathlib.Path:
    """Returns the folder `name` of this project in the user's cache, $XDG_CACHE_HOME or ~/.cache; it may not exist.

    Raises OSError where the user has no home folder either, as a container's user of no name.
    """
    # One place per user, not one per folder that a command is given in.
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        base = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
    except RuntimeError:
        raise OSError("this user has no home folder; the environment variable XDG_CACHE_HOME chooses a cache") from None
    return base / "fer_jax" / name


def processor_flags(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> set[str]:
    """Returns what Linux says that the processor can do, such as avx2 or bf16; nothing on other systems.

    cpuinfo: where Linux does.
    """
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    # Of x86 and of Arm. Other lines change while a machine runs, such as that of the clock.
    pairs = (line.partition(":") for line in lines)
    return {flag for name, _, words in pairs if name.strip() in ("flags", "Features") for flag in words.split()}
