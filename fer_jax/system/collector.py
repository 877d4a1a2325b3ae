"""Python's collector of cyclic garbage, which a start does without.

Imports and traces make a million objects that all stay. The collector would look at them again and again for garbage,
which took 0.6 of the 5.2 seconds of a training run's second start on two cores of an AMD EPYC, Zen 5.
"""

import gc

_is_paused = False


def pause() -> None:
    """Leaves cyclic garbage where it is, until `resume`; for a process that is the command's own."""
    global _is_paused
    if gc.isenabled():
        gc.disable()
        _is_paused = True


def resume() -> None:
    """Collects garbage from now on, of what is made from now on; does nothing without a `pause`."""
    global _is_paused
    if _is_paused:
        # What the start has made isn't looked at again.
        gc.freeze()
        gc.enable()
        _is_paused = False
