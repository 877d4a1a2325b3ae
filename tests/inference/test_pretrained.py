"""The packaged network agrees with its model card."""

import os
import pathlib
import re

import jax
import numpy as np
import pytest

from fer_jax import parallel
from fer_jax.data import embedded
from fer_jax.inference import weights
from fer_jax.inference.trained_model import TrainedModel
from tests.support import commands

CARD = pathlib.Path(__file__).parents[2] / "docs" / "model_card.md"
FILE = pathlib.Path(weights.resolve("pretrained"))


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    # On one device: each of several would do the whole computation.
    return TrainedModel.load("pretrained", mesh=parallel.make_mesh(jax.devices()[:1]))


def row_of_card(name: str) -> list[str]:
    (line,) = (line for line in CARD.read_text().splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_card_has_the_figures_that_are_stored_in_the_file(trained):
    assert FILE.stat().st_size <= 6_000_000
    accuracies = trained.metadata["accuracies"]
    for split, name in (("validation", "PublicTest, on which"), ("test", "PrivateTest |")):
        _, images, accuracy, without_copies, balanced, f1 = row_of_card(name)
        stored = accuracies[split]
        low, high = stored["accuracy_ci95"]
        assert images == f"{stored['num_examples']:,}"
        assert accuracy == f"{stored['accuracy']:.2%} ({low:.2%} to {high:.2%})".replace("%", "")
        others = stored["without_copies"]
        assert without_copies == f"{100 * others['accuracy']:.2f} (of {others['num_examples']:,})"
        assert float(balanced) == pytest.approx(100 * stored["balanced_accuracy"], abs=0.005)
        assert float(f1) == pytest.approx(stored["macro_f1"], abs=0.0005)
    assert f"value: {100 * accuracies['test']['accuracy']:.2f}" in CARD.read_text()
    assert accuracies["test"]["dataset_fingerprint"] in CARD.read_text()
    assert "FER-2013" in trained.metadata["licence"]


def test_it_reaches_the_card_s_figure_on_the_embedded_faces_and_by_the_command_on_rows_of_them(trained, tmp_path):
    split = embedded.make(seed=0).split("test")
    is_right = trained.probabilities(split.images).argmax(axis=1) == split.labels
    stated = float(row_of_card("the embedded drawn faces")[2]) / 100
    # Other hardware rounds differently, which may change the prediction of a few borderline images.
    assert abs(is_right.sum() - stated * len(split)) <= 3
    drawn = np.random.default_rng(0).permutation(len(split))[:200]
    rows = ["emotion,pixels,Usage"]
    rows += [f"{split.labels[i]},{' '.join(map(str, split.images[i].ravel()))},PrivateTest" for i in drawn]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    status, out, err = commands.run(
        commands.main("--mode=evaluate", "--weights=pretrained", f"--data={tmp_path / 'rows.csv'}", "--split=test")
    )
    assert status == 0, err
    assert "200 images" in out
    accuracy = float(re.search(r"accuracy +([\d.]+)%", out)[1])
    assert abs(accuracy / 100 * 200 - is_right[drawn].sum()) <= 3


@pytest.mark.skipif("FER2013_CSV" not in os.environ, reason="FER2013_CSV does not name the real data")
@pytest.mark.parametrize("split", ["validation", "test"])
def test_it_reaches_the_card_s_figures_on_fer_2013(trained, split):
    data = os.environ["FER2013_CSV"]
    status, out, err = commands.run(
        commands.main("--mode=evaluate", "--weights=pretrained", f"--data={data}", f"--split={split}")
    )
    assert status == 0, err
    assert trained.metadata["dataset_fingerprint"] in out
    accuracy = float(re.search(r"accuracy +([\d.]+)%", out)[1])
    # In percentage points. Machines differ by a few borderline images.
    assert abs(accuracy - 100 * trained.metadata["accuracies"][split]["accuracy"]) <= 0.5
