"""Training that starts from a weights file (config.model.init)."""

import os
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from PIL import Image

from fer_jax.errors import UserError
from fer_jax.exports import torch_folder
from fer_jax.inference.preprocessing import Preprocessing
from fer_jax.inference.trained_model import TrainedModel
from tests.end_to_end.conftest import read_metrics
from tests.end_to_end.test_main import command
from tests.support.checkpoints import read_arrays
from tests.support.commands import start
from tests.support.networks import random_network
from tests.support.processes import free_port, said

NAMES = ("bored", "happy", "tired")


@pytest.fixture(scope="module")
def weights_file(finished, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    TrainedModel.load(finished).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Returns a folder of faces of three classes, which differ in the position of a bright band, as in the tiny run."""
    path = tmp_path_factory.mktemp("data") / "faces"
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("valid", 4), ("test", 4)):
        for label, name in enumerate(NAMES):
            (path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 60, (48, 48), dtype=np.uint8)
                pixels[6 * label : 6 * label + 6] += 150
                Image.fromarray(pixels).save(path / split / name / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def make_tuning(make_config, folder):
    """Returns a function that makes the config of a run on the folder which starts from a weights file."""

    def make(init, **overrides):
        values = {"dataset.path": str(folder), "dataset.classes": "folders", "model.init": init and str(init)}
        return make_config(**(values | overrides))

    return make


def first_arrays(config, workdir, run) -> dict[str, np.ndarray]:
    """Returns the arrays of the state before the first step, keyed by their names in a checkpoint."""
    assert run(config, workdir, stop_at=1) == 143
    return {key: np.asarray(value) for key, value in read_arrays(workdir).items()}


def in_file(key: str) -> str:
    """Returns the name in a weights file of an array of a checkpoint's weights."""
    return ".".join(part.strip("'\"") for part in key.removeprefix("weights[").removesuffix("]").split("]["))


def test_other_classes_take_all_but_the_head_and_the_head_is_the_one_that_a_fresh_run_draws(
    weights_file, make_tuning, run, tmp_path, capsys
):
    tuned = first_arrays(make_tuning(weights_file), tmp_path / "tuned", run)
    assert f"Starts from {weights_file}: all but the head (7 classes there, 3 here).\n" in capsys.readouterr().out
    fresh = first_arrays(make_tuning(None), tmp_path / "fresh", run)
    assert "Starts from" not in capsys.readouterr().out
    stored = safetensors.numpy.load_file(weights_file)
    taken = {in_file(key): value for key, value in tuned.items() if key.startswith("weights") and "head" not in key}
    assert taken.keys() == {name for name in stored if "head" not in name}
    for name, value in taken.items():
        np.testing.assert_array_equal(value, stored[name], err_msg=name)
    others = tuned.keys() - {key for key in tuned if in_file(key) in taken}
    assert len(others) > len(taken)  # they include the optimizer state
    for key in others:
        np.testing.assert_array_equal(tuned[key], fresh[key], err_msg=key)
    assert tuned["weights['params']['head']['kernel']"].shape[-1] == 3


def test_the_same_classes_take_the_head_too_and_the_first_epoch_is_better_than_a_fresh_one(
    make_config, run, tmp_path, capsys
):
    network = {"model.stages": 4}  # two stages learn too little in ten steps
    assert run(make_config(**network), tmp_path / "trained") == 0
    weights_file = tmp_path / "net.safetensors"
    TrainedModel.load(tmp_path / "trained").save(weights_file)
    values = network | {"optimizer.learning_rate": 1e-6, "num_epochs": 1}
    assert run(make_config(**values, **{"model.init": str(weights_file)}), tmp_path / "tuned") == 0
    assert f"Starts from {weights_file}: all layers.\n" in capsys.readouterr().out
    assert run(make_config(**values), tmp_path / "fresh") == 0
    # At this learning rate the network hardly changes, except for its batch statistics.
    losses = {name: read_metrics(tmp_path / name)[-1]["loss"] for name in ("tuned", "fresh")}
    assert losses["tuned"] < losses["fresh"]
    stored = safetensors.numpy.load_file(weights_file)
    tuned = {in_file(key): value for key, value in read_arrays(tmp_path / "tuned").items() if key.startswith("weights")}
    assert tuned.keys() == stored.keys()
    for name in stored:
        if name.startswith("params"):
            np.testing.assert_allclose(tuned[name], stored[name], atol=1e-5, err_msg=name)


def test_a_run_that_goes_on_needs_the_file_no_longer_and_ends_as_if_it_had_not_been_stopped(
    weights_file, make_tuning, run, tmp_path, capsys
):
    init = tmp_path / "net.safetensors"
    shutil.copy(weights_file, init)
    config = make_tuning(init, num_epochs=1)
    assert run(config, tmp_path / "undisturbed") == 0
    assert run(config, tmp_path / "run", stop_at=2) == 143
    init.unlink()
    capsys.readouterr()
    assert run(config, tmp_path / "run") == 0
    assert "Starts from" not in capsys.readouterr().out
    ours, theirs = read_arrays(tmp_path / "run"), read_arrays(tmp_path / "undisturbed")
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    # A run that starts from another file is a different run.
    with pytest.raises(UserError, match=r"config\.model\.init is .*weights.* here and .*net\.safetensors' there"):
        run(make_tuning(weights_file, num_epochs=1), tmp_path / "run")


def test_seven_other_classes_are_told_from_fer2013_s(weights_file, make_tuning, run, folder, tmp_path, capsys):
    faces = tmp_path / "faces"
    shutil.copytree(folder, faces)
    for split in ("train", "valid", "test"):
        for number in range(4):
            shutil.copytree(faces / split / "happy", faces / split / f"more{number}")
    first_arrays(make_tuning(weights_file, **{"dataset.path": str(faces)}), tmp_path / "run", run)
    assert "all but the head (7 classes there, 7 others here).\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.init": "nothing.safetensors"}, r"nothing\.safetensors is not there"),
        ({"model.init": "$NOWHERE/net.safetensors"}, "the environment variable NOWHERE is not set"),
        (
            {"model.depth": 18},
            r"net\.safetensors holds another network than config\.model of this run describes: it lacks "
            r"batch_stats\.stage1_block2.* \(config\.model\.depth is 10 there and 18 here\)",
        ),
        (
            {"model.width": 4},
            r"net\.safetensors: .* is \[2\], where config\.model of this run asks \[4\] \(config\.model\.width is 2 ",
        ),
        (
            {"dataset.image_size": 32, "dataset.resize": True},
            r"another preprocessing: image_shape is \[48, 48, 1\] there and \[32, 32, 1\] here: "
            r"--config\.dataset\.image_size=48",
        ),
    ],
)
def test_a_file_that_is_not_of_this_network_is_one_line_before_anything_is_compiled(
    weights_file, make_tuning, run, tmp_path, options, message, capsys
):
    with pytest.raises(UserError, match=message) as error:
        run(make_tuning(weights_file, **options), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert "Compiled" not in capsys.readouterr().out
    # The corrected command can use the same workdir.
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_file_that_is_cut_off_is_named(weights_file, make_tuning, run, tmp_path):
    init = tmp_path / "net.safetensors"
    shutil.copy(weights_file, init)
    os.truncate(init, 5000)
    with pytest.raises(UserError, match=r"net\.safetensors is not a whole safetensors file"):
        run(make_tuning(init), tmp_path / "run")


def test_a_stem_of_another_stride_is_said(weights_file, make_tuning, run, tmp_path, capsys):
    first_arrays(make_tuning(weights_file, **{"model.stem_stride": 1}), tmp_path / "run", run)
    assert "3 here); config.model.stem_stride is 2 there and 1 here.\n" in capsys.readouterr().out


@pytest.mark.parametrize("are_equal", [True, False])
def test_processes_read_the_same_file_or_all_leave(are_equal, finished, weights_file, csv_file, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for path, dtype in zip(folders, ("float32", "float32" if are_equal else "float16"), strict=True):
        path.mkdir()
        TrainedModel.load(finished).save(path / "net.safetensors", dtype=dtype)
    common = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    options = {"num_epochs": 1, "model.init": "$WEIGHTS/net.safetensors"}
    processes = [
        start(command(csv_file, tmp_path / "run", **options), **common, JAX_PROCESS_ID=str(number), WEIGHTS=str(path))
        for number, path in enumerate(folders)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    statuses = [process.returncode for process in processes]
    if are_equal:
        assert statuses == [0, 0], outputs
        assert f"Starts from {folders[0]}/net.safetensors: all layers." in outputs[0][0]
    else:
        assert statuses == [2, 2], outputs
        for _, err in outputs:
            (line,) = said(err)
            assert "the processes of this run differ: the content of config.model.init is " in line


@pytest.fixture
def write_torch(tmp_path):
    """Returns a function that writes a network under torchvision's names and returns the file and the network."""

    def write(channels=1, **options) -> tuple[pathlib.Path, TrainedModel]:
        trained = random_network(Preprocessing((48, 48, channels)), width=2, **options)
        torch_folder.write(trained, tmp_path / "torch", dtype="float32")
        return tmp_path / "torch" / "model.safetensors", trained

    return write


def test_a_file_of_torchvision_in_colour_starts_a_grey_network_of_other_classes(
    write_torch, make_tuning, run, tmp_path, capsys
):
    init, trained = write_torch(channels=3, class_names=[f"thing {number}" for number in range(1000)])
    tuned = first_arrays(make_tuning(init), tmp_path / "tuned", run)
    assert (
        f"Starts from {init}: all but the head (1000 classes there, 3 here), by the names of torchvision; the first "
        "kernel is the sum over its 3 colours.\n"
    ) in capsys.readouterr().out
    expected = traverse_util.flatten_dict(trained.variables, sep=".")
    expected["params.stem_conv.kernel"] = expected["params.stem_conv.kernel"].sum(axis=2, keepdims=True)
    taken = {in_file(key): value for key, value in tuned.items() if key.startswith("weights") and "head" not in key}
    assert taken.keys() == {name for name in expected if "head" not in name}
    for name, value in taken.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-7, err_msg=name)
    assert tuned["weights['params']['head']['kernel']"].shape[-1] == 3


def test_our_own_export_for_torch_gives_the_same_classes_all_layers(write_torch, make_tuning, run, tmp_path, capsys):
    init, trained = write_torch(class_names=NAMES)
    tuned = first_arrays(make_tuning(init), tmp_path / "tuned", run)
    assert f"Starts from {init}: all layers, by the names of torchvision.\n" in capsys.readouterr().out
    for key, value in traverse_util.flatten_dict(trained.variables, sep=".").items():
        (taken,) = (array for name, array in tuned.items() if name.startswith("weights") and in_file(name) == key)
        np.testing.assert_array_equal(taken, value, err_msg=key)
    # The network has the same number of classes, but different ones.
    shutil.rmtree(init.parent)
    init, _ = write_torch(class_names=NAMES[::-1])
    first_arrays(make_tuning(init), tmp_path / "reversed", run)
    assert "all but the head (3 classes there, 3 others here), by the names" in capsys.readouterr().out


def test_class_names_that_are_no_json_are_one_line_that_names_the_file(write_torch, make_tuning, run, tmp_path):
    init, _ = write_torch(class_names=NAMES)
    safetensors.numpy.save_file(safetensors.numpy.load_file(init), init, metadata={"class_names": "happy,sad"})
    with pytest.raises(
        UserError, match=r"model\.safetensors: class_names of its metadata is no JSON .*\[\"happy\", "
    ) as error:
        run(make_tuning(init), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_stem_of_another_window_is_left_as_it_was_drawn(write_torch, make_tuning, run, tmp_path, capsys):
    init, _ = write_torch(class_names=NAMES)
    options = {"model.stem_kernel": 3}
    tuned = first_arrays(make_tuning(init, **options), tmp_path / "tuned", run)
    assert "all but the stem (7x7 there, 3x3 here), by the names of torchvision.\n" in capsys.readouterr().out
    fresh = first_arrays(make_tuning(None, **options), tmp_path / "fresh", run)
    for key, value in fresh.items():
        if "stem" in key:
            np.testing.assert_array_equal(tuned[key], value, err_msg=key)
    assert not np.array_equal(*(arrays["weights['params']['head']['kernel']"] for arrays in (tuned, fresh)))


def test_a_resnet_of_torch_of_another_depth_and_what_is_none_are_one_line(write_torch, make_tuning, run, tmp_path):
    init, _ = write_torch(depth=18)
    with pytest.raises(
        UserError,
        match=r"has one tensor too many, layer1\.1\.bn1.*; by its names it is a ResNet of torchvision",
    ):
        run(make_tuning(init), tmp_path / "run")
    (tmp_path / "resnet18.pth").write_bytes(b"PK not a safetensors file")
    with pytest.raises(UserError, match=r"safetensors\.torch\.save_file\(state_dict, FILE\) makes one of PyTorch's"):
        run(make_tuning(tmp_path / "resnet18.pth"), tmp_path / "run")
    safetensors.numpy.save_file({"weight": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors is a safetensors file of another program"):
        run(make_tuning(tmp_path / "other.safetensors"), tmp_path / "run")
