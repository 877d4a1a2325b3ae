"""A run of version 0.1.0 (tests/fixtures/run_0.1) is repeated, resumed and evaluated by the current code.

The fixture is a ResNet-18 of width 2 after one of two epochs on the embedded dataset, of 20 steps each, in float32 with
convolutions as matrix products. expected.json has the SHA-256 of all arrays after 20 and 40 steps, made with one
version of jaxlib on a processor with AVX2. Elsewhere sums are rounded in another order, and values are compared
within a bound.
"""

import hashlib
import json
import pathlib
import shutil
import sys

import jaxlib
import numpy as np
import pytest

from tests.support.checkpoints import read_arrays
from tests.support.commands import main, run

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "run_0.1"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
OPTIONS = {
    "num_epochs": 2,
    "batch_size": 70,
    "dataset.source": "embedded",
    "model.depth": 18,
    "model.width": 2,
    "model.dtype": "float32",
    "model.conv": "matmul",
    "log.every_steps": 10,
}


def is_made_alike() -> bool:
    """Returns whether this machine rounds like the one on which the fixture was made."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return jaxlib.__version__ == EXPECTED["jaxlib"] and "avx2" in flags and "avx512f" not in flags


# The exact bits need the optimisations of a user's run, and so an interpreter that has not read JAX's settings yet.
# Where values are compared within a bound, a forked process with the suite's compiler options is quicker.
PROGRAM = [sys.executable, "-c", "from fer_jax import main; main.run()"] if is_made_alike() else main()
ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"} if is_made_alike() else {}
ENVIRONMENT["XLA_FLAGS"] = "--xla_cpu_max_isa=AVX2"  # and one device


def command(workdir, **overrides) -> list[str]:
    values = OPTIONS | overrides
    options = [f"--config.{key}={value}" for key, value in values.items()]
    return [*PROGRAM, "--config=configs/resnet50.py", f"--workdir={workdir}", *options]


def assert_equal_to_version_0_1(workdir, step: int) -> None:
    arrays = {key: np.asarray(value) for key, value in read_arrays(workdir).items()}
    digest = hashlib.sha256(b"".join(key.encode() + arrays[key].tobytes() for key in sorted(arrays))).hexdigest()
    if is_made_alike():
        assert digest == EXPECTED["sha256"][str(step)]
    events = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (validation,) = [event for event in events if event["kind"] == "validation" and event["step"] == step]
    expected = EXPECTED["validation"][str(step)]
    assert validation["loss"] == pytest.approx(expected["loss"], abs=1e-9 if is_made_alike() else 0.05)


def test_a_run_of_version_0_1_is_repeated_resumed_and_evaluated(tmp_path):
    # This is one test, so that the later commands reuse the programs that the first one compiles.
    status, _, err = run(command(tmp_path / "run", num_epochs=1), **ENVIRONMENT)
    assert status == 0, err
    assert_equal_to_version_0_1(tmp_path / "run", 20)
    ours, theirs = read_arrays(tmp_path / "run"), read_arrays(FIXTURE)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        if key.startswith("weights"):
            # The greatest difference measured between AVX2 and SSE4.2 is 4e-4.
            np.testing.assert_allclose(ours[key], theirs[key], atol=4e-3, rtol=0, err_msg=key)

    workdir = tmp_path / "resumed"
    shutil.copytree(FIXTURE, workdir)
    status, out, err = run(command(workdir), **ENVIRONMENT)
    assert status == 0, err
    assert "Resuming from the checkpoint of step 20" in out
    assert_equal_to_version_0_1(workdir, 40)

    # This command may be forked, with the suite's compiler options, because its exact bits are not compared.
    status, out, err = run(main("--mode=evaluate", f"--workdir={workdir}", "--checkpoint=20"))
    assert status == 0, err
    report = json.loads((workdir / "report" / "evaluation_validation.json").read_text())
    assert report["checkpoint_step"] == 20
    assert report["accuracy"] == pytest.approx(EXPECTED["validation"]["20"]["accuracy"], abs=3.5 / 350)
    assert "Restored step 20" in out
