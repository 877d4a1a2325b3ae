"""Checkpoints are restored and evaluated."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from fer_jax import evaluate
from fer_jax.errors import UserError
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.system.signals import StopRequest
from fer_jax.workdir import checksums
from fer_jax.workdir.checkpoints import Checkpoints
from fer_jax.workdir.paths import Workdir
from tests.end_to_end.conftest import read_metrics

RUN_0_1 = pathlib.Path(__file__).parents[1] / "fixtures" / "run_0.1"

KEYS = {
    "split",
    "num_examples",
    "accuracy",
    "accuracy_ci95",
    "loss",
    "macro_f1",
    "balanced_accuracy",
    "per_class",
    "confusion_matrix",
    "class_names",
    "checkpoint_step",
    "is_ema",
    "selected_on",
    "dataset",
    "dataset_fingerprint",
    "split_fingerprint",
    "view",
    "views",
    "without_copies",
}


def run_evaluation(
    workdir, *, config=None, data=None, split="validation", checkpoint="best", strict=False, pattern=""
) -> dict:
    """Evaluates, and returns the only report on the split in the workdir whose name ends in `pattern`."""
    asked = {"data": data and str(data), "split": split, "checkpoint": checkpoint, "strict": strict}
    evaluate.evaluate(config, Workdir(workdir), **asked, stop=StopRequest())
    (path,) = (workdir / "report").glob(f"evaluation_{split}{pattern}.json")
    return json.loads(path.read_text())


@pytest.fixture
def workdir(finished, tmp_path):
    """Returns the workdir of a copy of the finished run, without its reports."""
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("report"))
    return tmp_path / "run"


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_workdir_is_all_that_evaluation_needs(workdir, split, capsys):
    evaluation = run_evaluation(workdir, split=split)
    assert evaluation.keys() == KEYS
    confusion = np.array(evaluation["confusion_matrix"])
    assert confusion.sum() == evaluation["num_examples"] == {"validation": 21, "test": 17}[split]
    assert confusion.sum(axis=1).tolist() == [figures["support"] for figures in evaluation["per_class"].values()]
    out = capsys.readouterr().out
    assert "is the one logged in training" in out
    assert f"{evaluation['accuracy']:.2%}" in out


def test_best_latest_and_a_step_are_what_they_say(workdir):
    validation = {e["step"]: e["accuracy"] for e in read_metrics(workdir) if e["kind"] == "validation"}
    best = max(validation, key=validation.get)
    for checkpoint, step in (("best", best), ("latest", 10), ("10", 10)):
        evaluation = run_evaluation(workdir, checkpoint=checkpoint)
        assert evaluation["checkpoint_step"] == step
        assert evaluation["accuracy"] == validation[step]


@pytest.mark.parametrize("checkpoint", ["7", "newest"])
def test_a_checkpoint_that_is_not_there_is_an_error_that_names_those_that_are(workdir, checkpoint):
    with pytest.raises(UserError, match=rf"no checkpoint '{checkpoint}'; there are: .*10"):
        run_evaluation(workdir, checkpoint=checkpoint)


def test_a_folder_that_holds_no_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="the workdir of a run"):
        run_evaluation(tmp_path)


def test_other_data_may_be_evaluated(workdir, make_config, csv_file, tmp_path):
    other = tmp_path / "other.csv"
    rows = csv_file.read_text().splitlines()
    other.write_text("\n".join(row for i, row in enumerate(rows) if i % 2 == 0 or i == 0) + "\n")
    own = run_evaluation(workdir)
    for asked in ({"config": make_config(**{"dataset.path": str(other)})}, {"data": other}):
        evaluation = run_evaluation(workdir, **asked, pattern="_other.csv_????????")
        assert evaluation["dataset"] == "other.csv"
        assert evaluation["num_examples"] < 21
    # The run's own report is still there and unchanged.
    assert json.loads((workdir / "report" / "evaluation_validation.json").read_text()) == own


def test_strict_without_anything_to_hold_against_is_an_error(workdir, csv_file, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("\n".join(csv_file.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match=r"--strict compares .* and there is none on other\.csv; leave it out"):
        run_evaluation(workdir, data=other, strict=True)
    change_metadata(workdir, validation=None)
    with pytest.raises(UserError, match=r"logged with step .*, and there is none with it"):
        run_evaluation(workdir, strict=True)


def test_the_configs_cache_is_the_one_that_is_used(workdir, make_config, tmp_path):
    # The cache of the run's own config may be on a full disk, or may no longer exist.
    run_evaluation(workdir, config=make_config(**{"dataset.cache_dir": str(tmp_path / "other"), "dataset.path": None}))
    assert list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("layout", ["split", "classes alone", "csv"])
def test_a_folder_or_csv_with_test_images_alone_is_evaluated_in_whatever_size(workdir, tmp_path, layout, capsys):
    data = tmp_path / "JAFFE"
    if layout == "csv":
        data = tmp_path / "jaffe.csv"
        pixels = " ".join(["7"] * 100 * 100)
        data.write_text("label,pixels\n" + "".join(f"{label},{pixels}\n" for label in (0, 3, 3)))
    else:
        for number, name in enumerate(("anger", "happiness", "happiness")):
            path = data / ("test" if layout == "split" else "") / name / f"{number}.tiff"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (256, 256), (number, 9, 9)).save(path)
    evaluation = run_evaluation(workdir, data=data, split="test", pattern=f"_{data.name}_????????")
    assert (evaluation["dataset"], evaluation["num_examples"]) == (data.name, 3)
    supports = {name: figures["support"] for name, figures in evaluation["per_class"].items() if figures["support"]}
    assert supports == {"angry": 1, "happy": 2}
    out = capsys.readouterr().out
    assert "3 of 3 images were brought to 48 x 48 pixels" in out
    assert "of 7 classes are never predicted" in out
    if layout == "split":
        with pytest.raises(UserError, match=r"JAFFE has no examples in its validation split; it has test \(3\)"):
            run_evaluation(workdir, data=data)


def test_one_image_of_a_class_is_enough_to_evaluate_on(workdir, tmp_path):
    for name in ("anger", "happiness"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        Image.new("L", (48, 48), 9).save(tmp_path / "mine" / name / "me.png")
    evaluation = run_evaluation(workdir, data=tmp_path / "mine", split="test", pattern="_mine_????????")
    assert evaluation["num_examples"] == 2


def test_evaluation_takes_the_data_of_the_run_wherever_it_is_asked_for(
    make_config, run, csv_file, tmp_path, monkeypatch, capsys
):
    home, elsewhere, moved = tmp_path / "home", tmp_path / "elsewhere", tmp_path / "moved.csv"
    for folder in (home, elsewhere):
        (folder / "data").mkdir(parents=True)
    trained_on = home / "data" / "fer2013.csv"
    shutil.copy(csv_file, trained_on)
    monkeypatch.chdir(home)
    assert run(make_config(**{"dataset.path": None}, num_epochs=1), tmp_path / "run") == 0
    own = run_evaluation(tmp_path / "run", split="test")
    assert own["dataset"] == "fer2013.csv"

    # The run is evaluated in a folder without data, and in one that has other data in the default place.
    monkeypatch.chdir(elsewhere)
    assert run_evaluation(tmp_path / "run", split="test") == own
    rows = csv_file.read_text().splitlines(keepends=True)
    (elsewhere / "data" / "fer2013.csv").write_text("".join(rows[:-1]))
    assert run_evaluation(tmp_path / "run", split="test") == own

    # If the run's data have changed or are missing, no other data are used in their place.
    trained_on.write_text("".join(rows[:-1]))
    with pytest.raises(UserError, match=r"was trained on fer2013\.csv .*what is found now at .*say by --data"):
        run_evaluation(tmp_path / "run", split="test")
    trained_on.unlink()
    with pytest.raises(UserError, match=r"data/fer2013\.csv: there is no such file.*say by --data where it is now"):
        run_evaluation(tmp_path / "run", split="test")

    # Data that have been moved are still recognised as the run's own.
    shutil.copy(csv_file, moved)
    capsys.readouterr()
    assert run_evaluation(tmp_path / "run", data=moved, split="test") == own | {"dataset": "moved.csv"}
    assert "is the one logged in training" in capsys.readouterr().out


def test_a_run_on_the_embedded_set_is_evaluated_on_it_though_there_are_files(csv_file, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    shutil.copy(csv_file, tmp_path / "data" / "fer2013.csv")
    shutil.copytree(RUN_0_1, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["dataset"]["source"] = "auto"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    # Version 0.1 did not store the path of its data.
    with pytest.raises(UserError, match=r"was trained on embedded faces .*; what is found now at .*data/fer2013\.csv"):
        run_evaluation(tmp_path / "run")
    change_metadata(tmp_path / "run", dataset_path=None)
    assert run_evaluation(tmp_path / "run")["num_examples"] == 350


def test_any_other_difference_of_the_config_is_an_error(workdir, make_config):
    with pytest.raises(UserError, match=r"config.batch_size is 16 here and 8 there"):
        run_evaluation(workdir, config=make_config(batch_size=16))


def change_metadata(workdir, **changes) -> None:
    """Changes the metadata of the best checkpoint, as if another machine had written it."""
    with Checkpoints(Workdir(workdir)) as checkpoints:
        step = checkpoints.best_step
    path = workdir / "checkpoints" / str(step) / "record" / "metadata"
    record = json.loads(path.read_text())
    record["run"] |= changes
    del record["checksum"]
    path.write_text(json.dumps(record | {"checksum": checksums.checksum_of_json(record)}))


def logged_accuracy(workdir) -> float:
    return max(event["accuracy"] for event in read_metrics(workdir) if event["kind"] == "validation")


def test_an_accuracy_that_differs_by_a_few_images_is_said_with_its_reason(workdir, capsys):
    there = {"backend": "gpu", "device": "NVIDIA H100 80GB HBM3", "dtype": "float32", "conv": "lax"}
    logged = logged_accuracy(workdir) + 3 / 21
    change_metadata(workdir, validation={"loss": 1.0, "accuracy": logged}, computation=there)
    evaluation = run_evaluation(workdir, strict=True)
    output = capsys.readouterr()
    assert "3 of 21 images" in output.out
    assert "backend gpu there and cpu here" in output.out
    assert "borderline" in output.out
    assert output.err == ""
    assert evaluation["accuracy"] == pytest.approx(logged - 3 / 21)


def test_an_accuracy_that_differs_by_more_is_a_warning_and_with_strict_an_error(workdir, capsys):
    change_metadata(workdir, validation={"loss": 1.0, "accuracy": logged_accuracy(workdir) + 4 / 21})
    evaluation = run_evaluation(workdir, split="test")
    assert evaluation["num_examples"] == 17
    warning = capsys.readouterr().err
    assert warning.startswith("fer_jax: warning: step")
    assert "4 of 21 images" in warning
    with pytest.raises(UserError, match="4 of 21 images"):
        run_evaluation(workdir, split="test", strict=True)


def test_a_checkpoint_stores_what_it_was_computed_with(workdir):
    metadata = TrainedModel.load(workdir).metadata
    assert metadata["computation"]["backend"] == "cpu"
    assert metadata["computation"]["conv"] == "lax"
    assert metadata["computation"]["jax"] == jax.__version__


def test_a_split_that_is_not_there_is_an_error(workdir, make_config, csv_file, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("".join(line for line in csv_file.open() if "PrivateTest" not in line))
    with pytest.raises(UserError, match="no examples in its test split"):
        run_evaluation(workdir, config=make_config(**{"dataset.path": str(other)}), split="test")
