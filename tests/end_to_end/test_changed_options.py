"""Runs that are continued with other values of options that don't affect results."""

import json
import shutil

import numpy as np
import pytest

from fer_jax.data import ferplus
from fer_jax.errors import UserError
from tests.end_to_end.conftest import read_metrics
from tests.support import tiny_run
from tests.support.checkpoints import read_arrays


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def epochs(workdir) -> list[int]:
    return [event["epoch"] for event in read_metrics(workdir) if event["kind"] == "validation"]


def test_a_run_goes_on_for_more_epochs_as_if_it_had_had_them_from_the_start(workdir, make_config, run, tmp_path):
    assert run(make_config(num_epochs=3), workdir) == 0
    assert epochs(workdir) == [1, 2, 3]
    assert run(make_config(num_epochs=3), tmp_path / "whole") == 0
    ours, theirs = read_arrays(workdir), read_arrays(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)
    assert json.loads((workdir / "config.json").read_text())["num_epochs"] == 3


def test_a_run_that_has_had_more_epochs_is_complete(workdir, make_config, run, capsys):
    assert run(make_config(**{"num_epochs": 1, "log.every_steps": 7, "train.steps_per_call": 2}), workdir) == 0
    assert "is complete: 2 epochs" in capsys.readouterr().out
    assert epochs(workdir) == [1, 2]


def test_a_run_that_stopped_early_goes_on_with_more_patience(make_config, run, tmp_path, capsys):
    values = {"num_epochs": 9, "early_stopping.min_delta": 1.0}
    assert run(make_config(**values, **{"early_stopping.patience": 1}), tmp_path) == 0
    before = epochs(tmp_path)
    assert "Stopped early" in capsys.readouterr().out
    assert run(make_config(**values, **{"early_stopping.patience": 3}), tmp_path) == 0
    assert "Stopped early: no better validation accuracy in 3 epochs" in capsys.readouterr().out
    assert len(epochs(tmp_path)) == len(before) + 2


def test_files_that_hold_other_data_are_refused_and_the_run_keeps_its_config(
    workdir, make_config, run, tmp_path, csv_file
):
    before = (workdir / "config.json").read_bytes()
    moved = shutil.copy(csv_file, tmp_path / csv_file.name)
    assert run(make_config(**{"dataset.path": str(moved)}), workdir) == 0
    other = tmp_path / "other.csv"
    other.write_text(csv_file.read_text().replace(",150 ", ",151 ").replace("0,", "1,", 1))
    (workdir / "config.json").write_bytes(before)
    with pytest.raises(UserError, match="was started on"):
        run(make_config(**{"dataset.path": str(other)}), workdir)
    assert (workdir / "config.json").read_bytes() == before


def test_a_run_on_labels_does_not_go_on_with_fer_plus_but_where_nothing_of_it_is_used(
    workdir, make_config, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(ferplus, "ROWS", {"train": 40, "validation": 21, "test": 17})
    joined = {"dataset.ferplus": str(tiny_run.write_votes(tmp_path / "new.csv"))}
    for use in ({"dataset.ferplus_target_weight": 0.5}, {"dataset.ferplus_task": "majority"}):
        with pytest.raises(UserError, match=r"was started on fer2013\.csv \(\w+\) at .*, not on fer2013\.csv, FER\+ "):
            run(make_config(**joined, **use), workdir)
    assert run(make_config(**joined), workdir) == 0
    assert "is complete" in capsys.readouterr().out


def test_a_run_of_version_0_1_goes_on(workdir, make_config, run, capsys):
    path = workdir / "config.json"
    values = json.loads(path.read_text())
    values["optimizer"]["label_smoothing"] = values.pop("loss")["label_smoothing"]
    values["train"]["accumulate_steps"] = values["train"].pop("grad_accum_steps")
    del values["dataset"]["split_seed"], values["checkpoint"]["storage_timeout"], values["parallel"]["deterministic"]
    path.write_text(json.dumps(values))
    assert run(make_config(), workdir) == 0
    assert "is complete" in capsys.readouterr().out
