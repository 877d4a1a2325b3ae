"""Runs a contestant in a process of its own, so that other contestants' thread pools and allocators don't affect it.

`python -m scripts.benchmark.peers.worker SPEC` builds what the JSON object SPEC describes, calls it twice (which
compiles), and prints a line of JSON: its versions and number of parameters, or the module that is missing. Then, for
every number n that it reads, it makes one call that isn't counted and n that are, waits for the last one, and prints
the mean seconds of these n; for the word memory, it prints its peak memory so far, in bytes. It ends with its input, or
with an error, which it reports first.
"""

import importlib
import json
import os
import resource
import subprocess
import sys
import threading
import time

from scripts.benchmark.memory import resident_bytes

WARM_UP_CALLS = 2


class Worker:
    """The benchmark's side: starts the process and waits until it is ready; a context manager.

    spec: {peer: a module of scripts.benchmark.peers, python: an interpreter if not this one, and what `make` takes}.
    seconds: see `limit`. versions: {package: version}. Raises ModuleNotFoundError if a package is missing,
    RuntimeError if the process ends by itself, and TimeoutError if its limit ended it.
    """

    def __init__(self, spec: dict, *, seconds: float | None = None):
        self._process = subprocess.Popen(
            [spec.get("python", sys.executable), "-m", "scripts.benchmark.peers.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"TF_CPP_MIN_LOG_LEVEL": "2"} | os.environ,
        )
        self._timer, self._is_late = None, False
        self.limit(seconds)
        try:
            ready = self._answer()
            if "missing" in ready:
                raise ModuleNotFoundError(f"{ready['missing']} is not installed", name=ready["missing"])
        except BaseException:
            self.close()
            raise
        self.versions, self.num_parameters = ready["versions"], ready["parameters"]

    def measure(self, calls: int) -> float:
        """Returns the seconds of one call, the average over `calls` in a row."""
        print(calls, file=self._process.stdin, flush=True)
        return self._answer()

    def memory(self) -> dict:
        """Returns the peak memory in bytes: {device: that of an accelerator, or None, host: that of the process}."""
        print("memory", file=self._process.stdin, flush=True)
        return self._answer()

    def limit(self, seconds: float | None) -> None:
        """Ends the process after `seconds`, unless this is called again before; None: never."""
        if self._timer:
            self._timer.cancel()
        self._timer = None
        if seconds is not None:
            self._timer = threading.Timer(max(0.0, seconds), self._end_late)
            self._timer.daemon = True
            self._timer.start()

    def _end_late(self) -> None:
        self._is_late = True
        self._process.kill()

    def close(self) -> None:
        """Ends the process at once."""
        self.limit(None)
        self._process.kill()
        self._process.communicate()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line and self._is_late:
            raise TimeoutError("there was no time left for it")
        answer = json.loads(line) if line else {}
        if not line or (isinstance(answer, dict) and "failed" in answer):
            reason = f": {answer['failed']}" if line else ""
            raise RuntimeError(f"the process ended by itself, with status {self._process.wait()}{reason}")
        return answer


def serve(spec: dict, requests, answers) -> None:
    """The process's side: builds the contestant, reports that, and answers requests until there are no more."""

    def answer(value) -> None:
        print(json.dumps(value), file=answers, flush=True)

    peer = None
    try:
        peer = importlib.import_module(f"scripts.benchmark.peers.{spec['peer']}")
        _serve(peer, spec, requests, answer)
    except Exception as error:
        if peer is None and isinstance(error, ModuleNotFoundError):
            answer({"missing": error.name})
            return
        # For example a missing shared library, or an accelerator with too little memory.
        message = next(iter(str(error).strip().splitlines()), "")
        answer({"failed": f"{type(error).__name__}: {message}"[:300]})
        raise


def _serve(peer, spec: dict, requests, answer) -> None:
    call, num_parameters = peer.make(spec)
    # Not called after each call: a training loop doesn't wait each time, which would dominate steps of a millisecond.
    wait = getattr(peer, "wait", lambda result: None)
    for _ in range(WARM_UP_CALLS):
        wait(call())
    versions = {name: sys.modules[name].__version__ for name in peer.PACKAGES if name in sys.modules}
    answer({"versions": versions, "parameters": num_parameters})
    for line in requests:
        if line.strip() == "memory":
            used = resident_bytes(resource.getrusage(resource.RUSAGE_SELF))
            answer({"device": peer.peak_memory() if hasattr(peer, "peak_memory") else None, "host": used})
            continue
        calls = int(line)
        wait(call())  # refills caches and memory after the turns of the others
        started = time.perf_counter()
        for _ in range(calls):
            result = call()
        wait(result)
        answer((time.perf_counter() - started) / calls)


if __name__ == "__main__":
    # The output of libraries goes to standard error; standard output is for answers only.
    private = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(json.loads(sys.argv[1]), sys.stdin, private)
