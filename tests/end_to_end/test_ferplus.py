"""Networks that were trained with FER+'s votes are evaluated after the data and votes have been moved."""

import json
import pathlib
import shutil

import pytest
from PIL import Image

from fer_jax import evaluate, export
from fer_jax.data import ferplus
from fer_jax.errors import UserError
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.system.signals import StopRequest
from fer_jax.workdir.paths import Workdir
from tests.support import tiny_run

USES = {"soft": {"dataset.ferplus_task": "soft"}, "share": {"dataset.ferplus_target_weight": 0.5}}


@pytest.fixture(scope="module", autouse=True)
def small():
    """Patches the expected sizes of FER-2013's splits to those of the 78 images of `write_faces`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ferplus, "ROWS", {"train": 40, "validation": 21, "test": 17})
        yield


@pytest.fixture(scope="module")
def trained(make_config, run, csv_file, tmp_path_factory) -> pathlib.Path:
    """Returns a folder with a run and its weights file for each of USES, and their data, moved from home/ to moved/."""
    folder = tmp_path_factory.mktemp("ferplus")
    (folder / "home").mkdir()
    csv = shutil.copy(csv_file, folder / "home")
    votes = tiny_run.write_votes(folder / "home" / "fer2013new.csv")
    for name, use in USES.items():
        options = {"num_epochs": 1, "dataset.path": str(csv), "dataset.ferplus": str(votes)} | use
        assert run(make_config(**options), folder / name) == 0
        TrainedModel.load(folder / name).save(folder / f"{name}.safetensors")
    (folder / "home").rename(folder / "moved")
    return folder


def evaluate_run(workdir, *, config=None, data=None, strict=False) -> list[str]:
    """Deletes the existing reports, evaluates on the test split and returns the names of the new reports."""
    shutil.rmtree(workdir / "report", ignore_errors=True)
    asked = {"split": "test", "checkpoint": "best", "strict": strict, "stop": StopRequest()}
    evaluate.evaluate(config, Workdir(workdir), data=data and str(data), **asked)
    return [path.name for path in (workdir / "report").glob("*.json")]


def evaluate_file(path, data) -> None:
    asked = {"split": "test", "strict": True, "stop": StopRequest()}
    evaluate.evaluate_weights(str(path), None, data=data and str(data), **asked)


@pytest.fixture(params=USES)
def workdir(request, trained, tmp_path):
    return shutil.copytree(trained / request.param, tmp_path / request.param)


def test_data_that_moved_with_their_votes_are_the_run_s_own(workdir, trained, tmp_path, capsys):
    own = json.loads((workdir / "report" / "evaluation_test.json").read_text())
    # The path of the data may also be the folder of both files.
    data = trained / "moved" / ("fer2013.csv" if workdir.name == "soft" else "")
    assert evaluate_run(workdir, data=data, strict=True) == ["evaluation_test.json"]
    assert "is the one logged in training" in capsys.readouterr().out
    again = json.loads((workdir / "report" / "evaluation_test.json").read_text())
    assert again == own | {"dataset": own["dataset"].replace("fer2013.csv", data.name)}
    evaluate_file(trained / f"{workdir.name}.safetensors", trained / "moved" / "fer2013.csv")
    assert "is the one logged in training" in capsys.readouterr().out
    out = tmp_path / "net.safetensors"
    asked = {"dtype": "float32", "checkpoint": None, "licence": None, "stop": StopRequest()}
    export.export(Workdir(workdir), out=str(out), data=str(trained / "moved" / "fer2013.csv"), **asked)
    assert TrainedModel.load(out).metadata["accuracies"]["test"]["accuracy"] == own["accuracy"]


def test_votes_that_are_gone_are_said_and_can_be_named(trained, tmp_path, make_config, csv_file, monkeypatch, capsys):
    # A weights file stores only the file name of its votes, which is relative to the current folder.
    monkeypatch.chdir(tmp_path)
    votes = trained / "moved" / "fer2013new.csv"
    gone = rf"fer2013new\.csv: FER\+'s votes, .* nor are they beside the data, {csv_file.parent}/fer2013new\.csv; put"
    soft = shutil.copytree(trained / "soft", tmp_path / "soft")
    for evaluation in (
        lambda: evaluate_run(soft, data=csv_file),
        lambda: evaluate_file(trained / "soft.safetensors", csv_file),
    ):
        with pytest.raises(UserError, match=gone) as error:
            evaluation()
        assert "\n" not in str(error.value)
    # If the votes are only a share of the targets, evaluation does not need them.
    share = shutil.copytree(trained / "share", tmp_path / "share")
    (name,) = evaluate_run(share, data=csv_file)
    assert name.startswith("evaluation_test_fer2013.csv_")
    assert "warning: fer2013.csv is evaluated as other data, though it may be" in capsys.readouterr().err
    for workdir in (soft, share):
        config = make_config(num_epochs=1, **{"dataset.path": str(csv_file), "dataset.ferplus": str(votes)})
        assert evaluate_run(workdir, config=config, strict=True) == ["evaluation_test.json"]


def test_data_of_the_seven_classes_that_can_t_be_joined_are_one_clear_line(trained, tmp_path, make_config, csv_file):
    soft = shutil.copytree(trained / "soft", tmp_path / "soft")
    needs = r"FER\+'s eight classes apart needs FER-2013 in its official order, such as fer2013\.csv, and FER\+'s votes"
    part = tmp_path / "part.csv"
    part.write_text("".join(csv_file.open().readlines()[:-1]))
    (tmp_path / "faces" / "test" / "happy").mkdir(parents=True)
    Image.new("L", (48, 48)).save(tmp_path / "faces" / "test" / "happy" / "1.png")
    embedded = make_config(num_epochs=1, **{"dataset.path": None, "dataset.source": "embedded"})
    for asked, message in (
        ({"data": part}, rf"{needs} on it; part\.csv has 77 images in place of 78$"),
        ({"data": tmp_path / "faces"}, rf"happy: not a class of this network.*{needs} on it, or a folder of its own"),
        ({"config": embedded}, rf"{needs} on it; embedded faces has 2,100 images in place of 78$"),
    ):
        with pytest.raises(UserError, match=message) as error:
            evaluate_run(soft, **asked)
        assert "\n" not in str(error.value)
    # A folder with the network's own classes needs no votes.
    (tmp_path / "faces" / "test" / "happy").rename(tmp_path / "faces" / "test" / "happiness")
    (name,) = evaluate_run(soft, data=tmp_path / "faces")
    assert name.startswith("evaluation_test_faces_")


def test_without_data_a_network_s_file_finds_the_usual_ones_with_their_votes(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"finds no file: .*fer2013\.csv, FER\+ soft .*: say by --data where it is now"):
        evaluate_file(trained / "soft.safetensors", None)
    shutil.copytree(trained / "moved", tmp_path / "data")
    evaluate_file(trained / "soft.safetensors", None)
    assert "is the one logged in training" in capsys.readouterr().out
