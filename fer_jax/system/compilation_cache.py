"""Keeps compiled programs in the user's cache, so that a second start compiles nothing."""

import hashlib
import os
import pathlib
import threading
import warnings

from fer_jax import machine
from fer_jax.system.terminal import Terminal

# Bytes of compiled programs; the least recently used ones are removed. A ResNet-50 step takes 0.5 MB on a CPU.
_MAX_SIZE = 2**29
# Seconds; a program that compiles faster is not worth a file.
_MIN_COMPILE_TIME = 0.03
_DIGEST_SIZE = 32


def enable(terminal: Terminal) -> None:
    """Makes JAX keep compiled programs in the user's cache; prints a warning if they can't be kept.

    If the user has set a cache for JAX (JAX_COMPILATION_CACHE_DIR, empty for none), it is left as it is. Must precede
    the first compilation. Every process may call it: all of them read, and the first process of a run writes.
    Several processes with GPUs keep no programs.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    # GPUs share the trials of kernels: a process that compiles would wait for one that finds its program, for hours.
    if jax.process_count() > 1 and jax.default_backend() == "gpu":
        return
    # Machines may share a home folder, and code with another processor's instructions would crash the process.
    flags = hashlib.sha256(" ".join(sorted(machine.processor_flags())).encode()).hexdigest()[:16]
    try:
        folder = machine.user_cache("programs") / flags
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write {folder}")
        _check_entries(flags.encode())
    except (OSError, ImportError, AttributeError) as error:
        terminal.warn(f"compiled programs are not kept for the next start: {error}")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MAX_SIZE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_TIME)
    # An entry that can't be read is compiled again; JAX would warn in several lines, with the entry's name.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")


def _check_entries(origin: bytes) -> None:
    """Makes JAX store a digest of `origin` and the content with each entry, and drop entries whose digest differs.

    JAX itself would run the content of a damaged or foreign file if its compression has no checksum, and would never
    overwrite it. Raises ImportError or AttributeError if this version of JAX has its cache elsewhere, since there is no
    public name for it.
    """
    from jax._src import compilation_cache, lru_cache

    class Checked(lru_cache.LRUCache):
        def get(self, key: str) -> bytes | None:
            value = super().get(key)
            if value is not None and value[:_DIGEST_SIZE] != _digest(origin, value[_DIGEST_SIZE:]):
                # Removed, because JAX doesn't overwrite an entry that exists.
                pathlib.Path(os.fspath(self.path), f"{key}-cache").unlink(missing_ok=True)
                return None
            return value and value[_DIGEST_SIZE:]

        def put(self, key: str, value: bytes) -> None:
            super().put(key, _digest(origin, value) + value)

    compilation_cache.LRUCache = Checked


def _digest(origin: bytes, content: bytes) -> bytes:
    return hashlib.sha256(origin + content).digest()


class Hits:
    """Counts the programs that this thread requests while it is open, and those of them that came from the cache."""

    def __enter__(self) -> "Hits":
        import jax

        self._hits = self._requests = 0
        self._thread = threading.get_ident()
        jax.monitoring.register_event_listener(self._count)
        return self

    def __exit__(self, *_) -> None:
        import jax

        jax.monitoring.unregister_event_listener(self._count)

    @property
    def are_all(self) -> bool:
        """Returns whether at least one program was requested and every one came from the cache."""
        return 0 < self._requests == self._hits

    def _count(self, event: str, **_) -> None:
        if threading.get_ident() == self._thread:
            self._hits += event == "/jax/compilation_cache/cache_hits"
            self._requests += event == "/jax/compilation_cache/compile_requests_use_cache"
