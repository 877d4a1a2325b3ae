"""The machine that the program runs on: the user's cache folder and the features of the processor."""

import os
import pathlib


def user_cache(name: str) -> pathlib.Path:
    """Returns the folder `name` of this project in the user's cache, $XDG_CACHE_HOME or ~/.cache; it may not exist.

    Raises OSError if there is neither, as for a container's user without a name or a home folder.
    """
    # One cache per user, not one per working directory.
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        base = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
    except RuntimeError:
        raise OSError("this user has no home folder; the environment variable XDG_CACHE_HOME chooses a cache") from None
    return base / "fer_jax" / name


def processor_flags(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> set[str]:
    """Returns the features of the processor that Linux lists, such as avx2 or bf16; an empty set on other systems.

    cpuinfo: the file in which Linux lists them.
    """
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    # The line is named flags on x86 and Features on Arm. Others, such as the clock speed, change while a machine runs.
    pairs = (line.partition(":") for line in lines)
    return {flag for name, _, words in pairs if name.strip() in ("flags", "Features") for flag in words.split()}
