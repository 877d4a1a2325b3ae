"""Datasets with other classes, sizes and colours than FER-2013's, from the files to the report."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fer_jax import evaluate
from fer_jax.data import ferplus, load
from fer_jax.data.dataset import CLASS_NAMES
from fer_jax.errors import UserError
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.system.signals import StopRequest
from fer_jax.workdir.paths import Workdir
from tests.support import tiny_run

NAMES = ("anger", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Returns a folder of 100x100 colour images of eight classes, which differ in the position of a bright band."""
    folder = tmp_path_factory.mktemp("data") / "photographs"
    generator = np.random.default_rng(0)
    for split, count in (("train", 5), ("valid", 2), ("test", 2)):
        for label, name in enumerate(NAMES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 60, (100, 100, 3), dtype=np.uint8)
                pixels[12 * label : 12 * label + 12] += 150
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def test_a_folder_of_eight_classes_in_colour_trains_evaluates_and_reports(photographs, make_config, run, tmp_path):
    values = {"dataset.classes": "folders", "dataset.resize": True, "dataset.image_size": 32}
    config = make_config(**{"dataset.path": str(photographs)}, **values)
    assert run(config, tmp_path / "run") == 0
    for split in ("validation", "test"):
        report = json.loads((tmp_path / "run" / "report" / f"evaluation_{split}.json").read_text())
        assert tuple(report["class_names"]) == tuple(report["per_class"]) == NAMES
        assert np.sum(report["confusion_matrix"], axis=1).tolist() == [2] * 8
    trained = TrainedModel.load(tmp_path / "run")
    assert trained.class_names == NAMES
    assert trained.preprocessing.image_shape == (32, 32, 1)
    assert trained.probabilities(np.zeros((3, 32, 32, 1), np.uint8)).shape == (3, 8)
    with pytest.raises(UserError, match=r"uint8 \[n, 32, 32, 1\]"):
        trained.logits(np.zeros((3, 48, 48, 1), np.uint8))

    # Other data may have some of the network's classes, but no class that it lacks.
    shutil.copytree(photographs / "test" / "contempt", tmp_path / "others" / "Contempt")
    asked = {"split": "test", "checkpoint": "best", "strict": False, "stop": StopRequest()}
    evaluate.evaluate(None, Workdir(tmp_path / "run"), data=str(tmp_path / "others"), **asked)
    (path,) = (tmp_path / "run" / "report").glob("evaluation_test_others_*.json")
    assert np.sum(json.loads(path.read_text())["confusion_matrix"], axis=1).tolist() == [0, 2, 0, 0, 0, 0, 0, 0]
    shutil.copytree(photographs / "test" / "contempt", tmp_path / "others" / "joy")
    with pytest.raises(UserError, match=r"joy: not a class of this network, which tells anger, contempt"):
        evaluate.evaluate(None, Workdir(tmp_path / "run"), data=str(tmp_path / "others"), **asked)


def test_drawn_faces_of_three_classes_at_32_pixels_train_and_report(make_config, run, tmp_path, monkeypatch):
    names = ("happy", "surprise", "neutral")
    make = load.embedded.make
    sizes = {"train": 30, "validation": 12, "test": 9}
    monkeypatch.setattr(
        load.embedded, "make", lambda seed, image_size: make(seed, sizes, image_size=image_size, class_names=names)
    )
    config = make_config(**{"dataset.path": None, "dataset.source": "embedded", "dataset.image_size": 32})
    assert run(config, tmp_path) == 0
    report = json.loads((tmp_path / "report" / "evaluation_test.json").read_text())
    assert tuple(report["class_names"]) == names != CLASS_NAMES
    assert np.sum(report["confusion_matrix"], axis=1).tolist() == [3, 3, 3]
    assert TrainedModel.load(tmp_path).logits(np.zeros((1, 32, 32, 1), np.uint8)).shape == (1, 3)


@pytest.mark.parametrize("loader", ["tf.data", "device"])
def test_fer_plus_trains_evaluates_and_keeps_its_file_s_name_only(make_config, run, tmp_path, monkeypatch, loader):
    monkeypatch.setattr(ferplus, "ROWS", {"train": 40, "validation": 21, "test": 17})
    votes = tiny_run.write_votes(tmp_path / "fer2013new.csv")
    # The path is relative to the current folder, and the run is later evaluated from another folder.
    monkeypatch.chdir(tmp_path)
    values = {"dataset.ferplus": votes.name, "dataset.ferplus_task": "soft", "dataset.loader": loader}
    assert run(make_config(num_epochs=1, **values), tmp_path / "run") == 0
    report = json.loads((tmp_path / "run" / "report" / "evaluation_test.json").read_text())
    assert tuple(report["class_names"]) == ferplus.FERPLUS_CLASSES
    assert np.sum(report["confusion_matrix"], axis=1).tolist() == [2, 2, 2, 2, 3, 3, 3, 0]
    # The evaluation still uses the run's own data, including the votes.
    monkeypatch.chdir(tmp_path.parent)
    asked = {"split": "validation", "checkpoint": "best", "strict": True, "stop": StopRequest()}
    evaluate.evaluate(None, Workdir(tmp_path / "run"), **asked)
    trained = TrainedModel.load(tmp_path / "run")
    assert trained.class_names == ferplus.FERPLUS_CLASSES
    trained.save(tmp_path / "net.safetensors")
    assert TrainedModel.load(tmp_path / "net.safetensors").config.dataset.ferplus == "fer2013new.csv"
