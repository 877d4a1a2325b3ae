"""What the rest asks of the machine it runs on: the user's cache and what the processor can do."""

import os
import pathlib


def user_cache(name: str) -> pathlib.Path:
    """Returns the folder `name` of this project in the user's cache, $XDG_CACHE_HOME or ~/.cache; it may not exist."""
    # One place per user, not one per folder that a command is given in.
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "fer_jax" / name


def processor_flags(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> set[str]:
    """Returns the words in which Linux describes the processor, among them avx2 or bf16; none on other systems.

    cpuinfo: where Linux does.
    """
    # Words of other lines, such as the model's name, are among them: no name is spelt like a feature.
    return set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
