"""The command itself, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from fer_jax.checkpoint import Checkpoints

TINY = {
    "num_epochs": 2,
    "batch_size": 8,
    "model.depth": 18,
    "model.width": 2,
    "model.dtype": "float32",
    "log.every_steps": 1,
    "checkpoint.every_steps": 2,
}


def command(csv_file, workdir, **overrides):
    values = TINY | {"dataset.path": csv_file, "dataset.cache_dir": csv_file.parent / "prepared"} | overrides
    options = [f"--config.{key}={value}" for key, value in values.items()]
    return [*main("--config=configs/resnet50.py", f"--workdir={workdir}"), *options]


def main(*arguments):
    return [sys.executable, "-m", "fer_jax.main", *arguments]


def start(arguments, **environment):
    compilation = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    environment = os.environ | compilation | {"XLA_FLAGS": "", "GLIBC_TUNABLES": ""} | environment
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(arguments, **environment):
    process = start(arguments, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config=configs/resnet51.py"], "resnet51.py"),
        (["--config=configs/resnet50.py", "--config.batchsize=8"], "batchsize"),
        (["--config=configs/resnet50.py", "--config.batch_size=many"], "batch_size"),
        (["--config=configs/resnet50.py", "--config.batch_size=0"], "config.batch_size is 0; it must be at least 1"),
        (["--config=configs/resnet50.py", "--config.dataset.path=missing.csv"], "missing.csv"),
        (["--config=configs/resnet50.py", "--mode=predict"], "mode"),
        (["--config=configs/resnet50.py", "--epochs=3"], "epochs"),
        (["--config=configs/resnet50.py", "evaluate"], "'evaluate' is no option"),
        (["--mode=evaluate"], "--workdir is missing"),
        (["--mode=evaluate", "--workdir=runs/nothing"], "runs/nothing"),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(arguments, message):
    status, _, err = run(main(*arguments))
    assert status == 2, err
    assert message in err
    assert len(err.strip().splitlines()) == 1, err


def test_wrong_data_is_one_line_that_names_the_row_and_status_2(csv_file, tmp_path):
    rows = csv_file.read_text().splitlines()
    rows[3] = rows[3].replace(" ", " x", 1)
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join(rows) + "\n")
    status, _, err = run(command(bad, tmp_path / "run"))
    assert status == 2
    assert len(err.strip().splitlines()) == 1, err
    assert "bad.csv" in err
    assert "row 4" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves(number, status, csv_file, tmp_path):
    process = start(command(csv_file, tmp_path, num_epochs=5000))
    _wait_for(tmp_path / "metrics.jsonl", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert "Stopped and saved at step" in out
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert f"at step {checkpoints.latest_step}" in out


def test_a_killed_run_goes_on_to_what_it_would_have_been(csv_file, tmp_path):
    undisturbed = command(csv_file, tmp_path / "undisturbed", num_epochs=3)
    status, out, err = run(undisturbed)
    assert status == 0, err
    assert "Data set: FER-2013 (fer2013.csv) (40 train, 21 validation, 17 test;" in out
    assert "\r" not in err  # no progress bar where there is no terminal
    killed = command(csv_file, tmp_path / "killed", num_epochs=3)
    process = start(killed)
    _wait_for(tmp_path / "killed" / "checkpoints" / "2", process)
    process.kill()
    process.communicate()
    status, out, err = run(killed)
    assert status == 0, err
    assert "Going on from the checkpoint of step" in out
    for name in ("evaluation_validation.json", "evaluation_test.json"):
        reports = [json.loads((tmp_path / run / "report" / name).read_text()) for run in ("undisturbed", "killed")]
        assert reports[0] == reports[1]

    status, out, err = run(main("--mode=evaluate", f"--workdir={tmp_path / 'killed'}", "--split=test"))
    assert status == 0, err
    assert "is the one logged in training" in out


def _wait_for(path, process):
    for _ in range(1200):
        if path.exists() and (path.is_dir() or path.stat().st_size):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")
