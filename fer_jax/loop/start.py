"""Prepares the first step of a run: compiles the program, makes the state, and imports slow modules."""

import concurrent.futures
import importlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from fer_jax.loop.program import Program
from fer_jax.recipe.state import TrainState
from fer_jax.system.compilation_cache import Hits
from fer_jax.system.terminal import Terminal


def start(
    program: Program, state: TrainState | None, initial: Mapping[str, Any] | None, terminal: Terminal
) -> TrainState:
    """Compiles the program, makes the first state (from `initial`) if there is none, and returns the state."""
    # Only XLA gets a thread of its own: two threads that both run Python take longer than one after the other.
    lowered = program.lower(0 if state is None else int(state.step))
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        compiling = executor.submit(_compile, program, lowered)
        # Imports TensorFlow, which takes seconds, but costs nothing while XLA compiles.
        importlib.import_module("fer_jax.data.pipeline")
        if state is None:
            state = program.first_state(initial)
        terminal.say(f"{compiling.result()}\n")
    return state


def _compile(program: Program, lowered: Mapping[int, jax.stages.Lowered]) -> str:
    started = time.perf_counter()
    with Hits() as hits:
        program.compile(lowered)
    found = " (from the cache of compiled programs)" if hits.are_all else ""
    return f"Compiled the training step in {time.perf_counter() - started:.1f} s{found}"
