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
    """Returns the words in which Linux describes the processor, among them avx2 or bf16; none on other systems.

    cpuinfo: where Linux does.
    """
    # Words of other lines, such as the model's name, are among them: no name is spelt like a feature.
    return set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
