"""Runs commands and scripts in separate processes, as `subprocess` does, but in a tenth of the time to start them.

Each process is forked from a server that has imported the modules that all of them need (see `tiny_run`).
"""

import concurrent.futures
import os
import signal
import subprocess
import sys

from tests.support import tiny_run


def _run(*args) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the suite ignores it, and children inherit that
    tiny_run.run_script(*args)


class Forked:
    """A process that does what `python -c script` with these options does, with the part of Popen that tests use.

    JAX is imported but not initialised: JAX_PLATFORMS and JAX's other options are those of the test suite, whereas
    XLA_FLAGS and the options of distributed runs are taken from `environment`.
    """

    def __init__(self, script: str, options: list[str], environment: dict[str, str]):
        ends = [tiny_run.PROCESSES.Pipe(duplex=False) for _ in range(2)]
        self._process = tiny_run.PROCESSES.Process(
            target=_run, args=(script, options, *(writer for _, writer in ends), environment)
        )
        self._process.start()
        for _, writer in ends:
            writer.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(reader.fileno())) for reader, _ in ends)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired("a forked process", timeout)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        with concurrent.futures.ThreadPoolExecutor() as executor:
            reading = [executor.submit(file.read) for file in (self.stdout, self.stderr)]
            self.wait(timeout)
            return reading[0].result(), reading[1].result()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()


def start(arguments: list, **environment: str) -> subprocess.Popen | Forked:
    """Starts a command line; one that begins as `main()` does is forked, which is quicker."""
    environment = os.environ | {"XLA_FLAGS": "", "GLIBC_TUNABLES": ""} | environment
    arguments = list(map(str, arguments))
    if arguments[:3] == main():
        return Forked("from fer_jax import main; main.run()", arguments[3:], environment)
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(arguments: list, **environment: str) -> tuple[int, str, str]:
    """Starts a command line and waits for it; returns its status and what it printed."""
    process = start(arguments, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def run_script(script: str, *arguments, **environment: str) -> tuple[int, str, str]:
    """Forks a process that runs a script and waits for it; returns its status and what it printed."""
    process = Forked(script, list(map(str, arguments)), os.environ | environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def main(*options: str) -> list[str]:
    """Returns the command line of fer_jax with these options."""
    return [sys.executable, "-m", "fer_jax.main", *options]
