"""From a run that is set up to its first step: a compiled program, a state, and imports that take long."""

import concurrent.futures
import importlib
from collections.abc import Mapping
from typing import Any

from fer_jax.loop.program import Program
from fer_jax.recipe.state import TrainState
from fer_jax.system.compilation_cache import Hits
from fer_jax.system.terminal import Terminal


def start(
    program: Program, state: TrainState | None, initial: Mapping[str, Any] | None, terminal: Terminal
) -> TrainState:
    """Compiles the program, makes the first state (from `initial`) where there is none, and returns the state."""
    with concurrent.futures.ThreadPoolExecutor() as executor:
        compiling = executor.submit(_compile, program)
        # TensorFlow takes seconds to import: while XLA compiles, they cost nothing.
        importing = executor.submit(_import)
        if state is None:
            state = program.first_state(initial)
        importing.result()  # raises what the import did
        terminal.say(f"{compiling.result()}\n")
    return state


def _compile(program: Program) -> str:
    with Hits() as hits:
        seconds = program.compile()
    found = " (from the cache of compiled programs)" if hits.are_all else ""
    return f"Compiled the training step in {seconds:.1f} s{found}"


def _import() -> None:
    # One after the other: the first one says how TensorFlow is to be imported.
    for name in ("fer_jax.data.pipeline", "clu.metric_writers"):
        importlib.import_module(name)
