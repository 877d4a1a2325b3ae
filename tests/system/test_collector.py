"""A pause of the garbage collector: garbage that is made in it stays, and later garbage is collected."""

import gc
import subprocess
import sys
import weakref

from fer_jax.system import collector


class Cycle:
    def __init__(self):
        self.itself = self


def test_after_a_pause_garbage_is_collected_and_what_the_pause_made_stays():
    gc.collect()
    collector.pause()
    try:
        assert not gc.isenabled()
        before = weakref.ref(Cycle())
        collector.resume()
        assert gc.isenabled()
        after = weakref.ref(Cycle())
        gc.collect()
        assert before() is not None
        assert after() is None
    finally:
        gc.enable()
        gc.unfreeze()
        gc.collect()


def test_who_has_switched_the_collector_off_finds_it_off():
    gc.disable()
    try:
        collector.pause()
        collector.resume()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_process_that_imports_the_program_keeps_its_collector():
    program = "import gc, fer_jax.main; assert gc.isenabled()"
    subprocess.run([sys.executable, "-c", program], check=True)
