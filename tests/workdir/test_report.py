"""The report of a run: history, pictures, evaluation files and the table."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_jax.data.dataset import CLASS_NAMES, Dataset, Split
from fer_jax.errors import StorageError
from fer_jax.inference import metrics
from fer_jax.workdir import report
from fer_jax.workdir.paths import Workdir

ROOT = pathlib.Path(__file__).parents[2]


def make_events(num_epochs: int) -> list[dict]:
    """Two training events and a validation of each epoch, in figures that nearly all differ."""
    events = []
    for epoch in range(1, num_epochs + 1):
        for step in (10 * epoch - 5, 10 * epoch):
            figures = {"loss": 2 / step, "accuracy": 1 - 1 / step, "learning_rate": 1 / step, "images_per_second": step}
            events.append({"step": step, "epoch": epoch, "kind": "train", **figures})
        figures = {"loss": 3 / step, "accuracy": 0.9 - 1 / step}
        events.append({"step": 10 * epoch, "epoch": epoch, "kind": "validation", **figures})
    return events


@pytest.fixture
def dataset() -> Dataset:
    split = Split(np.zeros((2, 48, 48, 1), np.uint8), np.zeros(2, np.int32), np.arange(2))
    return Dataset("tiny.csv", {"train": split})


def write_history(events, dataset, folder) -> None:
    names = {"dataset_name": dataset.name, "dataset_fingerprint": dataset.fingerprint}
    report.write_history(events, **names, folder=folder)


def make_evaluation(confusion) -> dict:
    summary = metrics.summarize({"confusion": np.array(confusion), "loss": 1234.5}, CLASS_NAMES)
    return summary | {
        "split": "validation",
        "class_names": list(CLASS_NAMES),
        "checkpoint_step": 4480,
        "selected_on": "validation accuracy",
        "dataset": "tiny.csv",
        "dataset_fingerprint": "0123456789abcdef",
    }


@pytest.fixture
def evaluation() -> dict:
    """Of some 6,000 examples, so that some counts have a thousands separator; disgust is never predicted."""
    confusion = np.random.default_rng(0).integers(0, 90, (7, 7)) + np.diag([300, 0, 1, 2000, 1000, 10, 999])
    confusion[:, 1] = 0
    return make_evaluation(confusion)


def test_classes_that_are_never_predicted_are_said(evaluation):
    assert "1 of 7 classes is never predicted: disgust" in report.table(evaluation)
    confusion = np.zeros((7, 7), int)
    confusion[:, 3] = 5
    said = "6 of 7 classes are never predicted: angry, disgust, fear, sad, surprise, neutral"
    assert said in report.table(make_evaluation(confusion))
    assert "never predicted" not in report.table(make_evaluation(np.ones((7, 7), int)))


def assert_is_a_picture(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        pixels = np.array(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    return pixels


def test_history_has_each_epochs_last_training_event_and_its_validation():
    events = make_events(3)
    table = report.history(events)
    assert table["epoch"].to_list() == [1, 2, 3]
    for row, last, validation in zip(table.to_dict("records"), events[1::3], events[2::3], strict=True):
        assert row == {
            "epoch": last["epoch"],
            "step": last["step"],
            "train_loss": last["loss"],
            "train_accuracy": last["accuracy"],
            "validation_loss": validation["loss"],
            "validation_accuracy": validation["accuracy"],
            "learning_rate": last["learning_rate"],
            "images_per_second": last["images_per_second"],
        }


def test_the_curves_mark_the_epoch_that_the_run_selects(dataset, tmp_path, monkeypatch):
    events = make_events(3)
    for event, without_copies in zip(events[2::3], (0.5, 0.7, 0.6), strict=True):
        event["accuracy_without_copies"] = without_copies
    drawn = []
    monkeypatch.setattr(report, "save_figure", lambda figure, *_, **__: drawn.append(figure))
    for metric, marked in (("accuracy", "best: epoch 3"), ("accuracy_without_copies", "best: epoch 2")):
        names = {"dataset_name": dataset.name, "dataset_fingerprint": dataset.fingerprint}
        report.write_history(events, **names, metric=metric, folder=tmp_path)
        labels = [line.get_label() for line in drawn[-1].axes[0].lines]
        assert marked in labels
    assert "best validation accuracy without copies 70.00%" in drawn[-1].get_suptitle()
    table = pd.read_csv(tmp_path / "history.csv")
    assert table["validation_accuracy_without_copies"].to_list() == [0.5, 0.7, 0.6]


def test_the_table_says_whether_the_weights_are_averaged(evaluation):
    assert "checkpoint of step 4480, validation accuracy" in report.table(evaluation | {"is_ema": False})
    assert "checkpoint of step 4480, averaged weights, validation accuracy" in report.table(
        evaluation | {"is_ema": True}
    )


@pytest.mark.parametrize("cut", [1, 2])
def test_an_epoch_that_is_not_finished_is_left_out_of_the_history(cut):
    assert report.history(make_events(3)[:-cut]).equals(report.history(make_events(2)))


def test_history_csv_says_what_it_is_of(dataset, tmp_path):
    write_history(make_events(4), dataset, tmp_path / "report")
    table = pd.read_csv(tmp_path / "report" / "history.csv")
    assert list(table.columns) == [
        "epoch",
        "step",
        "train_loss",
        "train_accuracy",
        "validation_loss",
        "validation_accuracy",
        "learning_rate",
        "images_per_second",
        "dataset",
        "dataset_fingerprint",
    ]
    assert len(table) == 4
    assert set(table["dataset"]) == {"tiny.csv"}
    assert set(table["dataset_fingerprint"].astype(str)) == {dataset.fingerprint}
    assert table["validation_accuracy"].to_list() == report.history(make_events(4))["validation_accuracy"].to_list()


@pytest.mark.parametrize("events", [[], make_events(1)[:-1]], ids=["none", "first epoch not finished"])
def test_without_a_finished_epoch_there_is_an_empty_table_and_no_picture(events, dataset, tmp_path):
    write_history(events, dataset, tmp_path / "report")
    table = pd.read_csv(tmp_path / "report" / "history.csv")
    assert len(table) == 0
    assert "validation_accuracy" in table.columns
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["history.csv"]


@pytest.mark.parametrize("num_epochs", [1, 25])
def test_curves_are_a_picture_even_of_a_single_epoch(num_epochs, dataset, tmp_path):
    write_history(make_events(num_epochs), dataset, tmp_path)
    assert_is_a_picture(tmp_path / "curves.png")


def test_a_full_disk_is_named_by_what_was_to_be_written_there(dataset, tmp_path):
    (tmp_path / "curves.png").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=rf"{tmp_path}: .*No space left"), Workdir(tmp_path).time_limit():
        write_history(make_events(2), dataset, tmp_path)


def test_an_evaluation_comes_back_from_its_file(evaluation, tmp_path):
    report.write_evaluation(evaluation, tmp_path / "report")
    assert json.loads((tmp_path / "report" / "evaluation_validation.json").read_text()) == evaluation
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "confusion_matrix_validation.png",
        "evaluation_validation.json",
    ]


def test_the_picture_of_a_confusion_matrix_is_dark_where_the_share_is_high(tmp_path):
    confusion = np.full((7, 7), 1)
    confusion[5, 2] = 994
    report.write_evaluation(make_evaluation(confusion), tmp_path)
    blue = assert_is_a_picture(tmp_path / "confusion_matrix_validation.png").astype(int)
    dark = (blue[..., 2] - blue[..., 0] > 60) & (blue[..., 2] < 140)
    rows, columns = np.nonzero(dark)
    # All dark pixels are within one cell of 7 x 7, in the sixth row and third column of the matrix.
    assert dark.sum() > 1000
    assert np.ptp(rows) < dark.shape[0] / 7
    assert np.ptp(columns) < dark.shape[1] / 7
    assert rows.mean() > dark.shape[0] / 2
    assert columns.mean() < dark.shape[1] / 2


def test_a_class_without_examples_is_no_error(tmp_path):
    confusion = np.diag([5, 0, 5, 5, 5, 5, 5])
    report.write_evaluation(make_evaluation(confusion), tmp_path)
    assert_is_a_picture(tmp_path / "confusion_matrix_validation.png")
    assert "disgust" in report.table(make_evaluation(confusion))


def test_the_table_has_the_figures(evaluation):
    table = report.table(evaluation)
    low, high = evaluation["accuracy_ci95"]
    for text in (
        "validation split of tiny.csv (0123456789abcdef)",
        f"{evaluation['num_examples']:,} images",
        "checkpoint of step 4480, validation accuracy",
        f"{evaluation['accuracy']:.2%} (95% interval {low:.2%} to {high:.2%})",
        f"{evaluation['balanced_accuracy']:.2%}",
        f"{evaluation['macro_f1']:.4f}",
        f"{evaluation['loss']:.4f}",
    ):
        assert text in table
    rows = [line.split() for line in table.splitlines()]
    for i, (name, figures) in enumerate(evaluation["per_class"].items()):
        numbers = [f"{figures[key]:.4f}" for key in ("precision", "recall", "f1")]
        assert [name, *numbers, f"{figures['support']:,}"] in rows
        assert [name, *(f"{count:,}" for count in evaluation["confusion_matrix"][i])] in rows


def test_the_table_is_aligned(evaluation):
    table = report.table(evaluation)
    lines = table.splitlines()
    for title in ("  class ", "  rows: true"):
        first = next(i for i, line in enumerate(lines) if line.startswith(title)) + (title != "  class ")
        block = lines[first : first + 8]
        assert [line.split()[0] for line in block[1:]] == list(CLASS_NAMES)
        # Each number ends where its column's title ends.
        ends = {tuple(word.end() for word in re.finditer(r"\S+", line[12:])) for line in block}
        assert len(ends) == 1
    assert max(map(len, lines)) <= 80
    assert "," in table.split("rows: true")[1]


def is_color(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return np.abs(pixels.astype(int) - color).max(axis=-1) < 40


@pytest.mark.parametrize(("accuracies", "best"), [((0.5, 0.7, 0.6, 0.7), 2), ((0.5, 0.505, 0.509, 0.4), 3)])
def test_the_curves_mark_the_first_epoch_of_the_greatest_accuracy(accuracies, best, dataset, tmp_path):
    common = {"kind": "validation", "loss": 1.0}
    events = [common | {"step": i, "epoch": i, "accuracy": a} for i, a in enumerate(accuracies, 1)]
    write_history(events, dataset, tmp_path)
    pixels = assert_is_a_picture(tmp_path / "curves.png")
    right = pixels[:, pixels.shape[1] // 2 :]  # the losses, which have no legend in the same colors
    curve = np.nonzero(is_color(right, (31, 119, 180)).any(axis=0))[0]
    mark = np.nonzero(is_color(right, (255, 127, 14)).any(axis=0))[0]
    # The curve goes from the first epoch to the last, with markers of the same size at both.
    epoch = 1 + (mark.mean() - curve.min()) / np.ptp(curve) * (len(accuracies) - 1)
    assert epoch == pytest.approx(best, abs=0.1)


def test_metrics_that_were_not_finite_leave_gaps(dataset, tmp_path):
    events = [{key: value for key, value in event.items() if key != "loss"} for event in make_events(2)]
    write_history(events, dataset, tmp_path)
    table = pd.read_csv(tmp_path / "history.csv")
    assert table["train_loss"].isna().all()
    assert table["validation_accuracy"].notna().all()
    assert_is_a_picture(tmp_path / "curves.png")


def test_an_evaluation_file_is_json_though_a_metric_is_not_finite(evaluation, tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    evaluation["loss"] = float("nan")
    evaluation["per_class"]["disgust"]["f1"] = float("inf")
    report.write_evaluation(evaluation, tmp_path)
    text = (tmp_path / "evaluation_validation.json").read_text()
    stored = json.loads(text, parse_constant=refuse)
    del evaluation["loss"], evaluation["per_class"]["disgust"]["f1"]
    assert stored == evaluation


def test_a_report_is_one_of_its_step_and_views(evaluation, tmp_path):
    def is_reported(step=4480, views=()):
        return report.is_reported(tmp_path, "validation", step=step, views=views)

    assert not is_reported()
    report.write_evaluation(evaluation | {"views": {"whole": {}, "ten_crops": {}}}, tmp_path)
    assert is_reported()
    assert is_reported(views=["ten_crops"])
    assert not is_reported(step=4481)
    assert not is_reported(views=["whole", "whole_mirrored"])
    # Reports of version 0.1 have no views.
    report.write_evaluation(evaluation, tmp_path)
    assert is_reported()
    assert not is_reported(views=["whole"])
    for damaged in ("{", "[]", "{}", '{"checkpoint_step": null}', '{"checkpoint_step": 4480, "views": []}'):
        (tmp_path / "evaluation_validation.json").write_text(damaged)
        assert not is_reported()


def test_reporting_leaves_a_notebooks_backend_alone():
    program = (
        "import matplotlib, sys; matplotlib.use('svg'); from fer_jax.workdir import report; "
        "assert 'matplotlib.pyplot' not in sys.modules; sys.exit(matplotlib.get_backend() != 'svg')"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
