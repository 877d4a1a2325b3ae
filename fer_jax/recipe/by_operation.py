"""Calls a function operation by operation, where compiling all of it would take longer than it runs. Pure."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Traced:
    """A function of no arguments, traced: its program, and the shapes and dtypes of what it returns."""

    closed_jaxpr: core.ClosedJaxpr
    shapes: Any

    def __call__(self) -> Any:
        """Returns what the function returns, as numpy arrays, without compiling it as a whole.

        Operations that its results don't need are left out. Each of the others is a program of its own, which equal
        ones share; those within a function that is jitted remain one.
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
            # Memory of its own, which may be donated, for what is returned twice, or is one value throughout.
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
    """Returns the results of what numpy does without compiling a program for each shape, or None."""
    name, params = equation.primitive.name, equation.params
    if jax.dtypes.issubdtype(equation.outvars[0].aval.dtype, jax.dtypes.extended):
        return None  # keys
    if name == "broadcast_in_dim" and not np.ndim(arguments[0]):
        return [np.broadcast_to(arguments[0], params["shape"])]
    if name == "reshape" and params["dimensions"] is None:
        return [np.asarray(arguments[0]).reshape(params["new_sizes"])]
    if name == "slice":
        bounds = params["start_indices"], params["limit_indices"], params["strides"] or [None] * len(arguments[0].shape)
        return [np.asarray(arguments[0])[tuple(map(slice, *bounds))]]
    return None
