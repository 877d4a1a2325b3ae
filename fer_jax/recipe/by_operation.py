"""Runs a function operation by operation, for functions that would take longer to compile than to run. Pure."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Traced:
    """A traced function without arguments: its jaxpr, and the shapes and dtypes of its results."""

    closed_jaxpr: core.ClosedJaxpr
    shapes: Any

    def __call__(self) -> Any:
        """Returns the function's results as numpy arrays, without compiling the function as a whole.

        Operations that the results don't depend on are skipped. Each of the others runs as its own program, which equal
        operations share; the operations within a jitted function stay together in one program.
        """
        values = dict(zip(self.closed_jaxpr.jaxpr.constvars, self.closed_jaxpr.consts, strict=True))

        def read(atom):
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for equation in _needed(self.closed_jaxpr.jaxpr):
            arguments = [read(atom) for atom in equation.invars]
            results = _on_host(equation, arguments)
            if results is None:
                results = equation.primitive.bind(*arguments, **equation.params)
                results = results if equation.primitive.multiple_results else [results]
            values.update(zip(equation.outvars, results, strict=True))
        results, seen = [], set()
        for atom in self.closed_jaxpr.jaxpr.outvars:
            result = np.asarray(read(atom))
            # A value that is returned twice, or a broadcast scalar, is copied to its own memory, so it may be donated.
            is_shared = 0 in result.strides or (isinstance(atom, core.Var) and atom in seen)
            results.append(result.copy() if is_shared else result)
            seen |= {atom} if isinstance(atom, core.Var) else set()
        return jax.tree.unflatten(jax.tree.structure(self.shapes), results)


def trace(function: Callable[[], Any]) -> Traced:
    return Traced(*jax.make_jaxpr(function, return_shape=True)())


def _needed(jaxpr) -> list:
    """Returns the equations that the results depend on, in order."""
    wanted = {atom for atom in jaxpr.outvars if not isinstance(atom, core.Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(equation.outvars):
            kept.append(equation)
            wanted.update(atom for atom in equation.invars if not isinstance(atom, core.Literal))
    return kept[::-1]


def _on_host(equation, arguments: list) -> list | None:
    """Returns an operation's results, computed by numpy, which compiles no program for each shape; None if it can't."""
    name, params = equation.primitive.name, equation.params
    if jax.dtypes.issubdtype(equation.outvars[0].aval.dtype, jax.dtypes.extended):
        return None  # numpy has no PRNG keys
    if name == "broadcast_in_dim" and not np.ndim(arguments[0]):
        return [np.broadcast_to(arguments[0], params["shape"])]
    if name == "reshape" and params["dimensions"] is None:
        return [np.asarray(arguments[0]).reshape(params["new_sizes"])]
    if name == "slice":
        bounds = params["start_indices"], params["limit_indices"], params["strides"] or [None] * len(arguments[0].shape)
        return [np.asarray(arguments[0])[tuple(map(slice, *bounds))]]
    return None
