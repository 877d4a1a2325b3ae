"""Weights files are exported from a run and evaluated without it."""

import importlib.util
import json
import pathlib
import re
import shutil

import numpy as np
import onnxruntime
import pytest
import safetensors
import safetensors.numpy

from fer_jax import evaluate, export
from fer_jax.errors import UserError
from fer_jax.exports import formats
from fer_jax.inference.preprocessing import Preprocessing
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.system.signals import StopRequest
from fer_jax.workdir.paths import Workdir
from tests.support.commands import main, run
from tests.support.networks import random_network


def run_export(workdir: pathlib.Path, out, **asked) -> dict:
    """Exports the run and returns the metadata of the file."""
    asked = {"dtype": "float32", "checkpoint": "best", "data": None, "licence": None} | asked
    export.export(Workdir(workdir), out=out and str(out), **asked, stop=StopRequest())
    return metadata_of(out)


def metadata_of(path: pathlib.Path) -> dict:
    with safetensors.safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["fer_jax"])


def run_evaluation(path: pathlib.Path, workdir=None, *, data=None, split="test", strict=False) -> None:
    workdir = workdir and Workdir(workdir)
    evaluate.evaluate_weights(
        str(path), workdir, data=data and str(data), split=split, strict=strict, stop=StopRequest()
    )


def report_of(workdir: pathlib.Path, name: str) -> dict:
    return json.loads((workdir / "report" / f"evaluation_{name}.json").read_text())


@pytest.fixture
def workdir(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_export_stores_and_prints_what_the_written_network_reaches(workdir, csv_file, tmp_path, dtype, capsys):
    path = tmp_path / "net.safetensors"
    metadata = run_export(workdir, path, dtype=dtype, licence="MIT")
    out = capsys.readouterr().out
    # The file does not store the path of the data, so the evaluation needs it.
    for split in ("validation", "test"):
        own, stored = report_of(workdir, split), metadata["accuracies"][split]
        assert (stored["dataset"], stored["dataset_fingerprint"]) == ("fer2013.csv", own["dataset_fingerprint"])
        assert stored["num_examples"] == own["num_examples"]
        low, high = stored["accuracy_ci95"]
        assert 0 <= low < stored["accuracy"] < high <= 1
        if dtype == "float32":
            assert {key: own[key] for key in stored} == stored
        run_evaluation(path, tmp_path / "elsewhere", data=csv_file, split=split)
        again = report_of(tmp_path / "elsewhere", f"{split}_net")
        assert {key: again[key] for key in stored} == stored
        assert f"accuracy           {stored['accuracy']:.2%}" in capsys.readouterr().out
        assert f"step {metadata['step']} of {workdir} {own['accuracy']:.2%} (95% interval" in " ".join(out.split())
        assert f"{path}, {dtype}" in out
    assert metadata["selected_on"] == "validation accuracy"
    assert metadata["licence"] == "MIT"
    assert metadata["weights_dtype"] == dtype
    kernel = safetensors.numpy.load_file(path)["params.stem_conv.kernel"]
    expected = np.asarray(TrainedModel.load(workdir).variables["params"]["stem_conv"]["kernel"]).astype(dtype)
    np.testing.assert_array_equal(kernel, expected)
    assert sorted(other.name for other in tmp_path.iterdir()) == ["elsewhere", "net.safetensors", "run"]


def test_data_that_moved_are_named_and_others_are_refused(workdir, csv_file, tmp_path, capsys):
    trained_on = tmp_path / "moved.csv"
    shutil.copy(csv_file, trained_on)
    path = tmp_path / "net.safetensors"
    assert run_export(workdir, path, data=str(trained_on))["accuracies"].keys() == {"validation", "test"}
    path.unlink()
    rows = csv_file.read_text().splitlines(keepends=True)
    trained_on.write_text("".join(rows[:-1]))
    with pytest.raises(
        UserError, match=r"was trained on fer2013\.csv .*at .*moved\.csv is moved\.csv .*--weights=FILE"
    ):
        run_export(workdir, path, data=str(trained_on))
    assert not path.exists()


def test_without_the_data_the_file_is_written_without_accuracies_and_that_is_said(make_config, run, csv_file, tmp_path):
    data = tmp_path / "gone.csv"
    shutil.copy(csv_file, data)
    assert run(make_config(**{"dataset.path": str(data)}, num_epochs=1), tmp_path / "run") == 0
    data.unlink()
    status, out, err = run_main("--mode=export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'n.safetensors'}")
    assert status == 0, err
    assert "warning: nothing is evaluated, the file holds no accuracies, and the export is verified on random " in err
    assert "gone.csv: there is no such file" in err
    assert "accuracies" not in metadata_of(tmp_path / "n.safetensors")
    assert "n.safetensors: step 5, 7 classes, float32, " in out


def test_an_onnx_file_is_run_on_validation_images_and_on_random_ones_where_there_are_none(workdir, tmp_path):
    path = tmp_path / "net.onnx"
    status, out, err = run_main("export", f"--workdir={workdir}", "--format=onnx", f"--out={path}", "--licence=MIT")
    assert status == 0, err
    (said,) = re.findall(r"Read back and run on 21 validation images: probabilities differ by up to (.*), 100\.0%", out)
    assert float(said) < 1e-5
    trained = TrainedModel.load(workdir)
    assert f"{path}: step {trained.step}, 7 classes, float32, " in out
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 1), dtype=np.uint8)
    (found,) = onnxruntime.InferenceSession(path).run(["probabilities"], {"images": images})
    np.testing.assert_allclose(found, trained.probabilities(images), atol=1e-5)
    # A weights file doesn't store the path of the data, so the export from it uses random images.
    trained.save(tmp_path / "net.safetensors")
    source = f"--weights={tmp_path / 'net.safetensors'}"
    status, out, err = run_main("export", source, "--format=onnx", "--dtype=float16", f"--out={tmp_path / 'half.onnx'}")
    assert status == 0, err
    assert "warning: the export is verified on random images: the network in " in err
    assert "Read back and run on 256 random images: probabilities differ by up to " in out
    assert (tmp_path / "half.onnx").stat().st_size < path.stat().st_size


@pytest.mark.parametrize("name", ["stablehlo", "tflite", "torch", "transformers"])
def test_other_formats_are_run_where_what_reads_them_is_installed(workdir, tmp_path, name):
    kind = formats.FORMATS[name]
    path = tmp_path / f"net{kind.suffix}"
    status, out, err = run_main("export", f"--workdir={workdir}", f"--format={name}", f"--out={path}")
    assert status == 0, err
    if missing := [package for package in kind.readers if importlib.util.find_spec(package) is None]:
        assert f"warning: {path} is not verified, since {' and '.join(missing)} to read it with are not inst" in err
        assert f"pip install 'fer_jax[{name}]' brings them" in err
    else:
        (said,) = re.findall(r"run on 21 validation images: probabilities differ by up to (.*), 100\.0%", out)
        assert float(said) < 1e-5
    assert "Its probabilities are of angry, disgust, fear, happy, sad, surprise, neutral, in this order." in out
    assert ("JAX promises to read this file for six months" in out) == (name == "stablehlo")
    assert path.is_dir() == (name in ("torch", "transformers"))
    assert sorted(other.name for other in tmp_path.iterdir()) == [path.name, "run"]
    # An existing file is not overwritten.
    status, _, err = run_main("export", f"--workdir={workdir}", f"--format={name}", f"--out={path}")
    assert status == 2
    assert "which is there already; remove it or choose another name" in err


def test_a_format_of_one_picture_says_so_where_the_network_is_shown_ten(tmp_path):
    preprocessing = Preprocessing((48, 48, 1), crop=40, view="ten_crops")
    random_network(preprocessing).save(tmp_path / "net.safetensors")
    source = f"--weights={tmp_path / 'net.safetensors'}"
    status, _, err = run_main("export", source, "--format=transformers", f"--out={tmp_path / 'net'}")
    assert status == 0, err
    assert "net holds the view centre_crop, of one picture, where the network's own is ten_crops" in err
    processor = json.loads((tmp_path / "net" / "preprocessor_config.json").read_text())
    assert (processor["do_center_crop"], processor["crop_size"]) == (True, {"height": 40, "width": 40})


def test_what_answers_otherwise_than_the_network_is_not_kept(tmp_path):
    trained = random_network(stages=4, seed=1)
    # The kernels of two classes differ by less than float16 resolves, and are large enough for that to change answers.
    kernel = trained.variables["params"]["head"]["kernel"]
    kernel[...] = 1e4 * kernel[:, :1] * [1, 1.0003, -1]
    trained.save(tmp_path / "sharp.safetensors")
    source = f"--weights={tmp_path / 'sharp.safetensors'}"
    status, _, err = run_main("export", source, "--format=onnx", "--dtype=float16", f"--out={tmp_path / 'net.onnx'}")
    assert status == 2
    assert re.search(
        r"net\.onnx is not written, since it differs from the network: on 256 random images probabilities "
        r"differ by up to [\d.]+, [\d.]+% of the predictions are equal; float16 explains a difference of 0\.02",
        err,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["sharp.safetensors"]


def run_main(*options: str) -> tuple[int, str, str]:
    return run(main(*options))


def test_a_file_that_can_not_be_meant_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "there.safetensors").touch()
    for out, message in (
        (None, r"--out is missing: which file\? For example --out=net\.safetensors"),
        (tmp_path / "there.safetensors", r"there\.safetensors, which is there already; remove it"),
        (tmp_path / "net.onnx", r"net\.onnx; the name of a weights file ends in \.safetensors"),
        (tmp_path / "nowhere" / "net.safetensors", "and there is no folder .*nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            run_export(tmp_path / "no run", out)
    with pytest.raises(UserError, match="the workdir of a run"):
        run_export(tmp_path / "no run", tmp_path / "net.safetensors")


def test_a_file_is_evaluated_without_a_workdir_and_its_report_is_no_run_s(workdir, csv_file, tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    TrainedModel.load(workdir).save(path)
    own = report_of(workdir, "test")
    before = sorted(tmp_path.rglob("*"))
    run_evaluation(path, data=csv_file)
    out = capsys.readouterr().out
    assert "is the one logged in training" in out
    assert f"accuracy           {own['accuracy']:.2%}" in out
    assert "not known how it was selected; in net.safetensors" in out
    assert sorted(tmp_path.rglob("*")) == before
    # An evaluation of the file in the run's workdir leaves the run's own report unchanged.
    run_evaluation(path, workdir, data=csv_file)
    assert report_of(workdir, "test") == own
    assert report_of(workdir, "test_net")["weights_file"] == "net.safetensors"
    # Without --data the default places are searched, which hold other faces or none.
    with pytest.raises(
        UserError, match=r"the network in .*net\.safetensors was trained on fer2013\.csv .*say by --data"
    ):
        run_evaluation(path)


def test_other_data_have_a_report_of_another_name(workdir, csv_file, tmp_path):
    path = tmp_path / "net.safetensors"
    TrainedModel.load(workdir).save(path)
    other = tmp_path / "other.csv"
    other.write_text("".join(csv_file.read_text().splitlines(keepends=True)[:-3]))
    run_evaluation(path, tmp_path / "reports", data=other)
    (report,) = (tmp_path / "reports" / "report").glob("evaluation_test_net_other.csv_????????.json")
    assert json.loads(report.read_text())["num_examples"] == 14


def test_a_file_that_does_not_say_what_it_was_trained_on_needs_data(workdir, csv_file, tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    trained = TrainedModel.load(workdir)
    trained.metadata.clear()
    trained.metadata.update(class_names=list(trained.class_names), preprocessing=trained.preprocessing.to_metadata())
    trained.save(path)
    with pytest.raises(UserError, match="does not say what it was trained on: name the data by --data"):
        run_evaluation(path)
    run_evaluation(path, data=csv_file)
    assert f"accuracy           {report_of(workdir, 'test')['accuracy']:.2%}" in capsys.readouterr().out


def test_the_command_exports_and_evaluates(csv_file, finished, tmp_path):
    path = tmp_path / "net.safetensors"
    status, out, err = run_main(
        "--mode=export", f"--workdir={finished}", f"--out={path}", "--dtype=float16", "--checkpoint=latest"
    )
    assert status == 0, err
    assert metadata_of(path)["selected_on"] == "not selected (latest)"
    assert f"{path}: step 10, 7 classes, float16, " in out
    status, out, err = run_main("--mode=evaluate", f"--weights={path}", f"--data={csv_file}", "--split=test")
    assert status == 0, err
    assert "checkpoint of step 10, not selected (latest); in net.safetensors" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=export", "--out=net.safetensors"], "--workdir is missing"),
        (["--mode=export", "--workdir=runs/nothing"], "--out is missing"),
        (
            ["export", "--workdir=runs/nothing", "--out=a.safetensors", "--dtype=int8"],
            "--dtype is int8; --format=safetensors stores weights as float32, float16 or bfloat16",
        ),
        (
            ["export", "--workdir=runs/nothing", "--format=stablehlo", "--out=a.stablehlo", "--dtype=float16"],
            "--dtype is float16; --format=stablehlo stores weights as float32",
        ),
        (
            ["export", "--workdir=runs/nothing", "--format=onnx", "--out=a.safetensors"],
            "--out is a.safetensors; the name of a file of --format=onnx ends in .onnx",
        ),
        (["--mode=export", "--config=resnet50", "--out=a.safetensors"], "--config goes with --mode=train"),
        (["export", "--workdir=runs/nothing", "--weights=a.safetensors"], "name two networks, and one is exported"),
        (["export", "--weights=a.safetensors", "--checkpoint=best"], "--checkpoint is of a run"),
        (["--config=resnet50", "--weights=a.safetensors"], "--weights goes with --mode=evaluate and --mode=export"),
        (["--mode=evaluate", "--weights=a.safetensors", "--config=resnet50"], "--config does not go with --weights"),
        (["--mode=evaluate", "--weights=a.safetensors", "--checkpoint=best"], "--checkpoint is of a run"),
        (["--mode=evaluate", "--weights=nothing.safetensors"], "nothing.safetensors is not there"),
        (
            ["--mode=evaluate", "--weights=a.safetensors", "--config.dataset.path=x.csv"],
            "--config.dataset.path sets an option of an experiment, and --config, which names one, is missing; --data=",
        ),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(arguments, message):
    status, _, err = run_main(*arguments)
    assert status == 2, err
    assert message in err
    assert len(err.strip().splitlines()) == 1, err
