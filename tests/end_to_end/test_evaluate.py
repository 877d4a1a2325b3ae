"""Restoring checkpoints and evaluating them."""

import json
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from fer_jax import evaluate
from fer_jax.data.dataset import Split
from fer_jax.errors import UserError
from fer_jax.system.signals import StopRequest
from fer_jax.workdir import checkpoints as checkpoint_lib
from fer_jax.workdir.checkpoints import Checkpoints
from tests.end_to_end.conftest import read_metrics

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
    "selected_on",
    "dataset",
    "dataset_fingerprint",
}


def run_evaluation(workdir, *, config=None, split="validation", checkpoint="best"):
    status = evaluate.run(config, workdir, split=split, checkpoint=checkpoint, stop=StopRequest())
    return status, json.loads((workdir / "report" / f"evaluation_{split}.json").read_text())


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the finished run, without its reports."""
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("report"))
    return tmp_path / "run"


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_workdir_is_all_that_evaluation_needs(workdir, split, capsys):
    status, evaluation = run_evaluation(workdir, split=split)
    assert status == 0
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
        _, evaluation = run_evaluation(workdir, checkpoint=checkpoint)
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
    _, evaluation = run_evaluation(workdir, config=make_config(**{"dataset.path": str(other)}))
    assert "other.csv" in evaluation["dataset"]
    assert evaluation["num_examples"] < 21


def test_any_other_difference_of_the_config_is_an_error(workdir, make_config):
    with pytest.raises(UserError, match=r"config.batch_size is 16 here and 8 there"):
        run_evaluation(workdir, config=make_config(batch_size=16))


def test_an_accuracy_that_cannot_be_reproduced_is_an_error(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = checkpoints.best_step
    stored = workdir / "checkpoints" / str(step) / "record" / "metadata"
    record = json.loads(stored.read_text())
    record["run"]["validation"]["accuracy"] += 1 / 21
    del record["checksum"]
    stored.write_text(json.dumps(record | {"checksum": checkpoint_lib._checksum_of_json(record)}))
    with pytest.raises(UserError, match="had a validation accuracy of"):
        run_evaluation(workdir, split="test")


def test_a_split_that_is_not_there_is_an_error(workdir, make_config, csv_file, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("".join(line for line in csv_file.open() if "PrivateTest" not in line))
    with pytest.raises(UserError, match="no examples in its test split"):
        run_evaluation(workdir, config=make_config(**{"dataset.path": str(other)}), split="test")


def mean_in_seventh(_, images):
    """Logits that say how bright each seventh of an image is: a classifier that needs no weights."""
    return images[:, :42].reshape(len(images), 7, -1).mean(axis=-1)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 64), (3, 5), (8, 8), (8, 100)])
@pytest.mark.parametrize("mapper", ["shard_map", "pmap"])
def test_every_example_counts_once_for_any_batch_size_and_device_count(devices, batch_size, mapper):
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (37, 48, 48, 1), dtype=np.uint8)
    labels = generator.integers(0, 7, 37).astype(np.int32)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))
    with StopRequest() as stop:
        evaluator = evaluate.Evaluator(mean_in_seventh, mesh, mapper, batch_size=batch_size, stop=stop)
        sums = evaluator({}, Split(images, labels, np.arange(37)))
    logits = images[:, :42].reshape(37, 7, -1).astype(np.float64).mean(axis=-1) / 255
    expected = np.zeros((7, 7), int)
    np.add.at(expected, (labels, logits.argmax(axis=1)), 1)
    np.testing.assert_array_equal(sums["confusion"], expected)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(37), labels]
    np.testing.assert_allclose(sums["loss"], losses.sum(), rtol=1e-5)
