"""The command itself, run in separate processes."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from fer_jax.workdir.checkpoints import Checkpoints
from fer_jax.workdir.paths import Workdir
from tests.support import tiny_run
from tests.support.commands import main, run, start

TINY = tiny_run.TINY | {
    "num_epochs": 2,
    "batch_size": 8,
    "log.every_steps": 1,
    "checkpoint.every_steps": 2,
}


def command(csv_file, workdir, **overrides):
    values = TINY | {"dataset.path": csv_file, "dataset.cache_dir": csv_file.parent / "prepared"} | overrides
    options = [f"--config.{key}={value}" for key, value in values.items()]
    return [*main("--config=configs/resnet50.py", f"--workdir={workdir}"), *options]


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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_leaves(number, status, csv_file, tmp_path):
    process = start(command(csv_file, tmp_path, num_epochs=5000))
    _wait_for(tmp_path / "metrics.jsonl", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert "Stopped and saved at step" in out
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert f"at step {checkpoints.latest_step}" in out


def test_what_is_said_to_be_saved_is_on_the_disk(csv_file, tmp_path):
    process = start(command(csv_file, tmp_path, num_epochs=5000))
    _wait_for(tmp_path / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    said = next(line for line in process.stdout if line.startswith("Stopped and saved"))
    process.kill()
    process.communicate()
    with Checkpoints(Workdir(tmp_path), read_only=True) as checkpoints:
        assert f"at step {checkpoints.latest_step};" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_there_is_anything_to_save_ends_the_process_at_once(number, csv_file, tmp_path):
    process = start(command(csv_file, tmp_path))
    for line in process.stdout:
        if line.startswith("Workdir:"):  # the program is compiled next
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_run_without_a_reader_goes_on_and_is_saved_like_any_other(csv_file, tmp_path):
    process = start(command(csv_file, tmp_path, num_epochs=5000, **{"early_stopping.patience": 5000}))
    _wait_for(tmp_path / "metrics.jsonl", process)
    # Ctrl-C also ends the `tee` of a pipe. These runs print a line for every epoch.
    process.stdout.close()
    _wait_for_epoch(3, tmp_path, process)
    process.send_signal(signal.SIGINT)
    err = process.stderr.read()
    assert process.wait(120) == 130, err
    assert "Traceback" not in err
    assert (tmp_path / "report" / "history.csv").exists()
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert checkpoints.latest_step >= last["step"]


def test_a_second_signal_does_not_wait_for_the_save_and_loses_nothing_saved_before(csv_file, tmp_path):
    arguments = command(csv_file, tmp_path, num_epochs=5000)
    process = start(arguments)
    _wait_for(tmp_path / "checkpoints" / "2", process)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode in (143, -signal.SIGTERM)
    process = start(arguments)
    for line in process.stdout:
        if line.startswith("Resuming from the checkpoint of step"):
            break
    process.kill()
    process.communicate()
    assert line.startswith("Resuming")


def limited(arguments, kilobytes):
    """Returns the command with a limit on the size of each file, at which writing fails as on a full disk."""
    return ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "bash", *map(str, arguments)]


def test_a_disk_that_is_full_when_a_checkpoint_is_written_is_one_line_and_status_4(csv_file, tmp_path):
    arguments = command(csv_file, tmp_path, num_epochs=5000, **{"model.stages": 4})
    process = start(arguments)
    _wait_for(tmp_path / "checkpoints" / "2", process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    before = _contents(tmp_path / "checkpoints")
    status, out, err = run(limited(arguments, 26))  # a checkpoint contains a file of 30 kB
    assert status == 4, err
    assert "Resuming from the checkpoint of step" in out
    # Orbax's threads print their errors at the same time, possibly in the middle of a line.
    lines = [line for line in err.splitlines() if "fer_jax: " in line]
    assert len(lines) == 1, err
    assert "a checkpoint can't be written" in lines[0]
    assert "File too large" in lines[0]
    # If the last step of a stopped epoch is being saved again, its previous checkpoint is still in replaced/.
    after = _contents(tmp_path / "checkpoints") | _contents(tmp_path / "replaced")
    assert {path: after.get(path) for path in before} == before


def _contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_reports_and_a_disk_that_is_full_when_figures_are_written_loses_none(csv_file, tmp_path):
    status, out, err = run(command(csv_file, tmp_path))
    assert status == 0, err
    assert "Data set: fer2013.csv (40 train, 21 validation, 17 test;" in out
    assert "\r" not in err  # without a terminal there is no progress bar
    status, out, err = run(main("--mode=evaluate", f"--workdir={tmp_path}", "--split=test"))
    assert status == 0, err
    assert "is the one logged in training" in out
    before = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.partial").symlink_to("/dev/full")
    status, _, err = run(command(csv_file, tmp_path))
    assert status == 4
    assert f"fer_jax: {tmp_path / 'metrics.partial'}: [Errno 28] No space left on device" in err
    assert "Traceback" not in err
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_workdir_that_can_not_be_written_is_one_line_and_status_4(csv_file):
    status, _, err = run(command(csv_file, "/proc/fer_jax"))
    assert status == 4
    assert len(err.strip().splitlines()) == 1, err
    assert "/proc/fer_jax" in err


def test_a_file_system_that_stalls_at_the_end_is_left_after_the_limit(csv_file, tmp_path):
    (tmp_path / "report").mkdir()
    os.mkfifo(tmp_path / "report" / "history.csv")  # nobody reads it, so writing to it blocks forever
    status, out, err = run(command(csv_file, tmp_path, num_epochs=1, **{"checkpoint.storage_timeout": 15}))
    assert status == 4, err
    assert "epoch  1/1" in out
    assert f"fer_jax: {tmp_path}: the file system hasn't answered in 15 s" in err
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert checkpoints.latest_step == 5


def _wait_for(path, process):
    for _ in range(1200):
        if path.exists() and (path.is_dir() or path.stat().st_size):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


def _wait_for_epoch(epoch, workdir, process):
    """Waits until `epoch` more epochs have been evaluated."""

    def evaluated() -> int:
        return (workdir / "metrics.jsonl").read_text().count('"kind": "validation"')

    wanted = evaluated() + epoch
    for _ in range(600):
        if evaluated() >= wanted:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    raise AssertionError(f"no {epoch} more epochs came")


def read_only(arguments, folder):
    """Returns the command with a read-only mount of the folder, which only root can make."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    return ["unshare", "--mount", "bash", "-c", mount, folder, *arguments]


def test_a_run_on_a_read_only_disk_is_evaluated_and_says_what_is_not_written(csv_file, tmp_path):
    if subprocess.run(read_only(["true"], tmp_path), capture_output=True).returncode:
        pytest.skip("needs the right to mount, which root has")
    status, _, err = run(command(csv_file, tmp_path, num_epochs=1))
    assert status == 0, err
    program = [sys.executable, "-c", "from fer_jax import main; main.run()"]
    status, out, err = run(read_only([*program, "--mode=evaluate", f"--workdir={tmp_path}"], tmp_path))
    assert status == 0, err
    assert "95% interval" in out
    assert "fer_jax: warning: the report is not written: " in err
    assert "Read-only file system" in err


def test_the_users_folder_and_cache_are_meant_and_an_unwritable_cache_is_done_without(csv_file, tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here, home / "cache"):
        folder.mkdir()
    shutil.copy(csv_file, home / "faces.csv")
    monkeypatch.chdir(here)
    root = pathlib.Path(__file__).parents[2]
    options = [f"--config={root}/configs/resnet50.py", "--workdir=~/run", "--data=$HOME/faces.csv"]
    options += [f"--config.{key}={value}" for key, value in (TINY | {"num_epochs": 1}).items()]
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": str(root)}
    status, out, err = run(main(*options), **environment)
    assert status == 0, err
    assert (home / "run" / "report" / "evaluation_test.json").exists()
    assert list((home / "cache" / "fer_jax" / "prepared").glob("fer2013-*"))
    assert list(here.iterdir()) == []

    if subprocess.run(read_only(["true"], home / "cache"), capture_output=True).returncode:
        pytest.skip("needs the right to mount, which root has")
    shutil.rmtree(home / "cache" / "fer_jax")
    program = [sys.executable, "-c", "from fer_jax import main; main.run()"]
    evaluation = [*program, "--mode=evaluate", "--workdir=~/run"]
    status, out, err = run(read_only(evaluation, home / "cache"), **environment)
    assert status == 0, err
    assert "is the one logged in training" in out
    assert "can't be kept in this folder (Read-only file system), so the files are read anew each time" in err
    assert "--config.dataset.cache_dir" in err
