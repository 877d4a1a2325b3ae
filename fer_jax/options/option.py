"""Defines an option of a config and the checks of its value."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Check:
    """A condition on a value of the right type. right, wrong: example values, from which the tests are made."""

    wanted: str
    holds: Callable[[Any], bool]
    right: tuple
    wrong: tuple = ()


@dataclasses.dataclass(frozen=True)
class Option:
    """A row of the table.

    default: keeps the behaviour from before the option existed; None (unset) only if `optional`. type: bool, int, str
    or float, which accepts an int. changes_results: whether a run that is resumed with another value has other results,
    by more than rounding, than a run with that value from its first step; a function of the config's flat values if it
    depends on them.
    """

    default: Any
    type: type
    check: Check
    note: str
    changes_results: bool | Callable[[Mapping[str, Any]], bool] = True
    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Returns whether `value` has the option's type and passes its check."""
        if value is None:
            return self.optional
        if isinstance(value, bool) and self.type is not bool:  # a bool is an int in Python
            return False
        return isinstance(value, (int, float) if self.type is float else self.type) and self.check.holds(value)


def one_of(*choices) -> Check:
    return Check(
        f"one of {', '.join(map(str, choices))}", lambda value: value in choices, choices, (type(choices[0])(),)
    )


def matches(pattern: str, wanted: str, right: tuple, wrong: tuple) -> Check:
    return Check(wanted, lambda value: bool(re.fullmatch(pattern, value)), right, wrong)


SWITCH = Check("True or False", lambda value: True, (True, False))
AT_LEAST_ONE = Check("at least 1", lambda value: value >= 1, (1, 1000), (0, -1))
SIZE = Check("from 8 to 512", lambda value: 8 <= value <= 512, (8, 48, 512), (0, 7, 513))
INDEX = Check("at least 0", lambda value: value >= 0, (0, 12), (-1,))
NOT_NEGATIVE = Check("at least 0, and finite", lambda value: 0 <= value < math.inf, (0, 2.5), (-0.1, math.inf))
POSITIVE = Check("above 0, and finite", lambda value: 0 < value < math.inf, (1e-9, 1), (0, -0.1, math.inf))
PROBABILITY = Check("from 0 to 1", lambda value: 0 <= value <= 1, (0, 0.5, 1), (-0.1, 1.1))
BELOW_ONE = Check("from 0 to below 1", lambda value: 0 <= value < 1, (0, 0.99), (-0.1, 1))
ANGLE = Check("from 0 to 180", lambda value: 0 <= value <= 180, (0, 180), (-1, 180.5))
ODD = Check("odd", lambda value: value > 0 and value % 2 == 1, (1, 3, 7), (0, 2, -3))
# JAX uses 32 bits of a seed, TensorFlow a signed integer: larger seeds would give the same results as smaller ones.
SEED = Check("from 0 to 2147483647", lambda value: 0 <= value < 2**31, (0, 2**31 - 1), (-1, 2**31, 2**32, 2**63))
PATH = matches(r"(?s).+", "a path", ("data/fer2013.csv",), ("",))
ADDRESS = matches(r"[^:]+:\d+", "host:port", ("localhost:1234",), ("", "localhost", "localhost:", ":80"))
