"""Predictions by value and by property, and the measurement with two real processes."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.benchmark import scaling

ROOT = pathlib.Path(__file__).parents[2]
NETWORK = scaling.Network(flops=10**9, activations=10**6, parameters=25 * 10**6, statistics=50_000, norms=50)
DEVICE = scaling.Device("one", peak=100e12, memory=1e12, rings=())
PAIR = dataclasses.replace(DEVICE, rings=((2, 50e9),))
SYSTEMS = pytest.mark.parametrize("device", scaling.SYSTEMS, ids=lambda device: device.name)


def step(device, batch, **changes):
    return scaling.step_seconds(NETWORK, device, batch, **{"sync": False, "gradient_bytes": 4, **changes})


def test_a_device_takes_as_long_as_what_it_has_most_of():
    kernels = scaling.KERNELS_PER_NORM * 50 * scaling.KERNEL_SECONDS
    few, many = (scaling.device_seconds(NETWORK, DEVICE, batch) for batch in (1, 1000))
    optimizer = 4 * scaling.OPTIMIZER_PASSES * 25e6
    moved = 2 * scaling.MEMORY_PASSES * 1e6 * 1000 + optimizer
    assert few == pytest.approx(max(kernels, (2 * scaling.MEMORY_PASSES * 1e6 + optimizer) / 0.5e12))
    assert many == pytest.approx(max(10**9 * 1000 / 50e12, moved / 0.5e12))
    starved = dataclasses.replace(DEVICE, memory=1e18)
    assert scaling.device_seconds(NETWORK, starved, 1000) == pytest.approx(10**9 * 1000 / 50e12)


def test_an_all_reduce_goes_ring_by_ring_with_the_part_that_is_left():
    torus = dataclasses.replace(DEVICE, rings=((4, 10e9), (2, 5e9)))
    first, second = 2 * 3 / 4 * 8e9 / 10e9, 2 * 1 / 2 * (8e9 / 4) / 5e9
    hops = 2 * (2 + 1) * scaling.HOP_SECONDS
    assert scaling.all_reduce_seconds(8e9, torus) == pytest.approx(first + second + hops)
    assert scaling.all_reduce_seconds(8e9, DEVICE) == 0


def test_a_step_on_two_devices_adds_the_messages():
    alone = scaling.device_seconds(NETWORK, DEVICE, 64)
    hop = 2 * scaling.HOP_SECONDS
    assert step(PAIR, 64) == pytest.approx(alone + 4 * (25e6 + 50_000) / 50e9 + hop)
    assert step(PAIR, 64, gradient_bytes=2) == pytest.approx(alone + (2 * 25e6 + 4 * 50_000) / 50e9 + hop)
    small = 2 * 50 * (4 * 1000 / 50e9 + hop)
    assert step(PAIR, 64, sync=True) == pytest.approx(alone + 4 * 25e6 / 50e9 + hop + small)


@SYSTEMS
@given(st.integers(1, 4096))
def test_more_images_take_longer_and_waste_less(device, batch):
    def efficiency(batch):
        return scaling.device_seconds(NETWORK, device, batch) / step(device, batch)

    assert step(device, batch) <= step(device, 2 * batch)
    assert efficiency(batch) <= efficiency(2 * batch) <= 1
    assert (efficiency(batch) == 1) == (not device.rings)
    assert step(device, batch, gradient_bytes=2) <= step(device, batch) <= step(device, batch, sync=True)


def test_the_network_is_the_one_that_is_trained():
    network = scaling.describe_network()
    assert network.parameters == 23_516_103
    assert network.norms == 53
    # A norm writes as many values as its convolution, so norms write half of them; the first writes 24 x 24 x 64.
    assert network.activations % 2 == 0
    assert network.activations > 2 * 24 * 24 * 64
    table = scaling.predict(network)
    assert len(table.splitlines()) == 2 + 3 * len(scaling.SYSTEMS)
    assert "| 64 H100 | 256 |" in table
    assert "nan" not in table.lower()


def test_two_processes_are_measured_and_predicted():
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "scripts.benchmark", "scaling", "--measure", "--batch=4", "--rounds=1"]
    done = subprocess.run(
        [*command, '--model={"depth": 10, "stages": 2, "width": 4, "conv": "lax"}'],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    one, gradients, statistics, *steps = map(float, re.findall(r"([\d.]+) ms", done.stdout))
    own, own_measured, synchronised, synchronised_measured = steps
    # Messages: 3 arrays for each of 6 convolutions with a norm, 2 of the head, 12 of statistics. Figures are rounded.
    assert own == synchronised == pytest.approx(one + gradients + (3 * 6 + 2 + 12) * statistics, abs=2)
    assert min(own_measured, synchronised_measured) > 0
