"""SIGTERM, SIGHUP and Ctrl-C, sent to this process and to a child."""

import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from fer_jax.system.signals import Stopped, StopRequest

ROOT = pathlib.Path(__file__).parents[2]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NUMBERS = pytest.mark.parametrize("number", SIGNALS)


@pytest.fixture
def before():
    """Installs handlers for all three signals and yields the list of the signals that reached them."""
    reached = []
    previous = {number: signal.signal(number, lambda number, _: reached.append(number)) for number in SIGNALS}
    yield reached
    for number, handler in previous.items():
        signal.signal(number, handler)


def handlers() -> list:
    return [signal.getsignal(number) for number in SIGNALS]


@NUMBERS
def test_the_first_signal_is_noted_and_the_second_acts_as_it_would_have(number, before):
    with StopRequest() as stop:
        assert stop.received is None
        assert not stop.should_stop(1)
        signal.raise_signal(number)
        assert stop.received == number
        assert stop.should_stop(1)
        assert before == []
        signal.raise_signal(number)
        assert before == [number]
        assert stop.received == number


def test_after_the_first_signal_the_other_one_acts_as_it_would_have_too(before):
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert before == [signal.SIGTERM]
        assert stop.received == signal.SIGINT


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_the_exit_status_is_the_shells(number, status, before):
    with StopRequest() as stop:
        stop.check(1)
        signal.raise_signal(number)
        with pytest.raises(Stopped) as stopped:
            stop.check(1)
    assert stopped.value.signal == number
    assert stopped.value.exit_status == status


def test_a_hangup_that_was_ignored_stays_ignored(before):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.received is None


@pytest.mark.parametrize("signalled", [False, True])
def test_the_handlers_of_before_are_back_on_leaving(signalled, before):
    installed = handlers()
    with StopRequest():
        assert not set(handlers()) & set(installed)
        if signalled:
            signal.raise_signal(signal.SIGTERM)
    assert handlers() == installed


def test_the_handlers_of_before_are_back_after_an_error(before):
    installed = handlers()
    with pytest.raises(ZeroDivisionError), StopRequest():
        1 / 0  # noqa: B018
    assert handlers() == installed


LOOP = textwrap.dedent("""
    import signal, time
    from fer_jax.system.signals import StopRequest, Stopped

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background of a shell ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and so does nohup
    with StopRequest() as stop:
        print("ready", flush=True)
        try:
            while True:
                stop.check(1)
                time.sleep(0.01)
        except Stopped as stopped:
            print(stopped.exit_status, flush=True)
        for _ in range(3000):  # Python looks for signals after each sleep, not before
            time.sleep(0.02)
""")


@NUMBERS
def test_a_second_signal_ends_a_process_that_is_slow_to_stop(number):
    with subprocess.Popen(
        [sys.executable, "-c", LOOP], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    ) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        assert child.stdout.readline() == f"{128 + number}\n"
        assert child.poll() is None
        child.send_signal(number)
        assert child.wait(30) == -number


def test_a_signal_that_arrives_while_the_processes_ask_each_other_counts_at_the_next_question(before, monkeypatch):
    def gather(received):
        signal.raise_signal(signal.SIGTERM)
        return np.array([received, 0])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with StopRequest() as stop:
        monkeypatch.setattr(multihost_utils, "process_allgather", gather)
        assert not stop.should_stop(20)
        monkeypatch.setattr(multihost_utils, "process_allgather", lambda received: np.array([0, received]))
        assert stop.should_stop(40)
        assert stop.received == signal.SIGTERM
