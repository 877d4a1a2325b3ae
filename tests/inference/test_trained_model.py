"""A trained network as an object: loaded from a run, applied to images."""

import dataclasses
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from fer_jax.data.dataset import CLASS_NAMES
from fer_jax.errors import StorageError, UserError
from fer_jax.inference import weights
from fer_jax.inference.trained_model import Preprocessing, TrainedModel

RUN = pathlib.Path(__file__).parents[1] / "fixtures" / "run_0.1"


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    return TrainedModel.load(RUN)


def random_images(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, 48, 48, 1), dtype=np.uint8)


def test_a_run_is_loaded_with_its_names_preprocessing_config_and_step(trained):
    assert trained.class_names == CLASS_NAMES
    assert trained.preprocessing == Preprocessing((48, 48, 1), 255.0)
    assert trained.step == 20
    assert (trained.config.model.depth, trained.config.model.width) == (18, 2)
    assert trained.metadata["dataset_fingerprint"] == "b326fd2395d9a543"


@pytest.mark.parametrize("number", [1, 3, 64, 70])
def test_logits_are_those_of_the_model_on_scaled_images_for_any_number(trained, number):
    images = random_images(number)
    logits = trained.logits(images)
    assert logits.shape == (number, 7)
    assert logits.dtype == np.float32
    model = trained.model.clone(conv_fn=jax.lax.conv_general_dilated)
    variables = jax.device_get(trained.variables)
    expected = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, jnp.float32(images) / 255)
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_no_images_have_no_logits(trained):
    assert trained.logits(random_images(0)).shape == (0, 7)


def test_probabilities_are_the_softmax_of_the_logits(trained):
    images = random_images(5)
    exponentials = np.exp(trained.logits(images).astype(np.float64))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(trained.probabilities(images), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 48, 48), np.uint8),
        np.zeros((48, 48, 1), np.uint8),
        np.zeros((2, 40, 40, 1), np.uint8),
        np.zeros((2, 48, 48, 1), np.float32),
    ],
)
def test_images_of_another_kind_are_an_error_that_says_what_would_be_right(trained, images):
    with pytest.raises(UserError, match=r"takes uint8 \[n, 48, 48, 1\]"):
        trained.logits(images)


def test_a_folder_without_a_run_and_a_missing_checkpoint_are_errors(tmp_path):
    with pytest.raises(UserError, match="the workdir of a run"):
        TrainedModel.load(tmp_path)
    with pytest.raises(UserError, match="no checkpoint '7'"):
        TrainedModel.load(RUN, "7")


def test_preprocessing_is_applied_and_survives_its_metadata():
    preprocessing = Preprocessing((2, 2, 1), 127.5)
    images = np.array([0, 51, 102, 255], np.uint8).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(np.ravel(preprocessing(images)), [0.0, 0.4, 0.8, 2.0])
    assert Preprocessing.from_metadata(preprocessing.to_metadata()) == preprocessing


def test_preprocessing_as_version_0_1_stored_it_is_understood():
    stored = {"image_shape": [48, 48, 1], "pixels": "uint8 / 255"}
    assert Preprocessing.from_metadata(stored) == Preprocessing((48, 48, 1), 255.0)


# ---- weights files


@pytest.fixture(scope="module")
def weights_file(trained, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    trained.save(path)
    return path


def test_a_weights_file_is_the_same_network(trained, weights_file):
    loaded = TrainedModel.load(weights_file)
    images = random_images(5)
    np.testing.assert_array_equal(loaded.logits(images), trained.logits(images))
    assert (loaded.class_names, loaded.preprocessing, loaded.step) == (
        trained.class_names,
        trained.preprocessing,
        trained.step,
    )
    assert loaded.config.model == trained.config.model
    assert loaded.metadata["dataset_fingerprint"] == trained.metadata["dataset_fingerprint"]
    # A file saved from a loaded file has the same bytes.
    loaded.save(weights_file.with_name("again.safetensors"))
    assert weights_file.with_name("again.safetensors").read_bytes() == weights_file.read_bytes()


def test_a_weights_file_is_a_plain_safetensors_file_that_tells_nothing_of_the_machine(trained, weights_file):
    tensors = safetensors.numpy.load_file(weights_file)
    np.testing.assert_array_equal(
        tensors["params.stem_conv.kernel"], trained.variables["params"]["stem_conv"]["kernel"]
    )
    with safetensors.safe_open(weights_file, framework="numpy") as file:
        metadata = json.loads(file.metadata()["fer_jax"])
    assert metadata["class_names"] == list(CLASS_NAMES)
    assert (metadata["config"]["dataset"]["path"], metadata["config"]["dataset"]["cache_dir"]) == (None, None)
    assert metadata.keys().isdisjoint({"dataset_path", "progress"})


def test_a_weights_file_names_the_file_that_training_started_from_without_its_folder(trained, tmp_path):
    config = trained.config.copy_and_resolve_references()
    config.model.init = "/home/somebody/net.safetensors"
    dataclasses.replace(trained, config=config).save(tmp_path / "tuned.safetensors")
    assert TrainedModel.load(tmp_path / "tuned.safetensors").config.model.init == "net.safetensors"
    assert b"somebody" not in (tmp_path / "tuned.safetensors").read_bytes()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.01), ("bfloat16", 0.1)])
def test_two_bytes_a_value_halve_the_kernels_and_keep_what_is_small_in_float32(trained, tmp_path, dtype, tolerance):
    path = tmp_path / "half.safetensors"
    trained.save(path, dtype=dtype)
    tensors = safetensors.numpy.load_file(path)
    assert {str(tensor.dtype) for tensor in tensors.values() if tensor.ndim > 1} == {dtype}
    assert {str(tensor.dtype) for tensor in tensors.values() if tensor.ndim == 1} == {"float32"}
    images = random_images(5)
    loaded = TrainedModel.load(path)
    np.testing.assert_allclose(loaded.logits(images), trained.logits(images), atol=tolerance)
    assert loaded.metadata["weights_dtype"] == dtype
    # Rounded values don't change when they are rounded again.
    loaded.save(tmp_path / "again.safetensors", dtype=dtype)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_another_dtype_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="stored as float32, float16 or bfloat16, not as int8"):
        trained.save(tmp_path / "net.safetensors", dtype="int8")


def test_a_checkpoint_of_a_weights_file_can_not_be_asked_for(weights_file):
    for checkpoint in ("best", "latest", "20"):
        with pytest.raises(UserError, match=rf"net\.safetensors is a weights file, .* no checkpoint '{checkpoint}'"):
            TrainedModel.load(weights_file, checkpoint)


def test_a_file_that_can_not_be_written_is_named_and_leaves_nothing(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing/net"):
        trained.save(tmp_path / "nothing" / "net.safetensors")
    (tmp_path / "net.safetensors.partial").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"net\.safetensors\.partial: .*No space left"):
        trained.save(tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_pretrained_is_the_file_of_the_package_unless_something_there_is_called_so(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    with pytest.raises(UserError, match=rf"no pretrained weights: {package} holds no fer2013\.safetensors"):
        weights.resolve("pretrained", folder=package)
    # The detector's file is in the same folder.
    (package / "blazeface_full_range.safetensors").touch()
    with pytest.raises(UserError, match="no pretrained weights"):
        weights.resolve("pretrained", folder=package)
    (package / "fer2013.safetensors").touch()
    assert weights.resolve("pretrained", folder=package) == str(package / "fer2013.safetensors")
    assert weights.resolve("other.safetensors", folder=package) == "other.safetensors"
    monkeypatch.setenv("HOME", "/home/ada")
    assert weights.resolve("~/net.safetensors") == "/home/ada/net.safetensors"
    with pytest.raises(UserError, match=r"--weights is \$nets/a\.safetensors, and the environment variable nets"):
        weights.resolve("$nets/a.safetensors", "--weights")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrained").mkdir()
    assert weights.resolve("pretrained", folder=package) == "pretrained"
    assert weights.resolve(None, folder=package) == str(package / "fer2013.safetensors")


def without(values: dict, key: str) -> dict:
    return {name: value for name, value in values.items() if name != key}


def change_file(path: pathlib.Path, *, tensors=None, document=None, text=None) -> None:
    """Rewrites a file: `tensors` and `document` map its tensors and its metadata, `text` replaces the metadata."""
    stored = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    if text:
        metadata = {"fer_jax": text}
    if document:
        metadata = {"fer_jax": json.dumps(document(json.loads(metadata["fer_jax"])))}
    safetensors.numpy.save_file(tensors(stored) if tensors else stored, path, metadata)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path, 5000), "is not a whole safetensors file"),
        (lambda path: path.write_bytes(b"hello"), "is not a whole safetensors file"),
        (os.remove, r"net\.safetensors is not there"),
        (lambda path: safetensors.numpy.save_file({}, path), "is a safetensors file of another program"),
        (
            lambda path: change_file(path, tensors=lambda old: {**old, "params.extra": np.zeros(2, np.float32)}),
            r"it has one tensor too many, params\.extra",
        ),
        (
            lambda path: change_file(path, tensors=lambda old: {k: old[k] for k in old if k != "params.head.bias"}),
            r"it lacks params\.head\.bias",
        ),
        (
            lambda path: change_file(path, document=lambda old: {**old, "class_names": ["a", "b"]}),
            r"params\.head\.bias is \[7\], where its config asks \[2\]",
        ),
        (lambda path: change_file(path, document=lambda old: {**old, "format": 2}), "has format 2; .* reads format 1"),
        (lambda path: change_file(path, text="{"), "its metadata under 'fer_jax' are no JSON"),
        (lambda path: change_file(path, text="[1, 2]"), r"are no object but \[1, 2\]"),
        (lambda path: change_file(path, document=lambda old: without(old, "format")), "'fer_jax' lack format"),
        (lambda path: change_file(path, document=lambda old: without(old, "config")), "'fer_jax' lack config"),
        (lambda path: change_file(path, document=lambda old: without(old, "class_names")), "lack class_names"),
        (lambda path: change_file(path, document=lambda old: without(old, "preprocessing")), "lack preprocessing"),
        (lambda path: change_file(path, document=lambda old: without(old, "step")), "'fer_jax' lack step"),
        (
            lambda path: change_file(path, document=lambda old: {**old, "config": 3}),
            "config of its metadata is 3; it must be an object",
        ),
        (
            lambda path: change_file(path, document=lambda old: {**old, "class_names": "abc"}),
            "class_names of its metadata is abc; it must be a list of names",
        ),
        (
            lambda path: change_file(path, document=lambda old: {**old, "preprocessing": {"image_shape": [48, 48]}}),
            r"must be an object with an image_shape \[height, width, channels\]",
        ),
        (
            lambda path: change_file(path, document=lambda old: {**old, "preprocessing": {"image_shape": [48, 48, 1]}}),
            r"which can't be applied \(KeyError: 'divisor'\)",
        ),
        (
            lambda path: change_file(path, document=lambda old: {**old, "step": -1}),
            "step of its metadata is -1; it must be a whole number, at least 0",
        ),
        (
            lambda path: change_file(path, document=lambda old: {**old, "class_names": ["a"] * 7}),
            "it must be a list of names, each there once",
        ),
        (
            lambda path: change_file(path, document=lambda old: {**old, "validation": "x"}),
            "validation of its metadata is x; it must be null or an object with an accuracy",
        ),
        (
            lambda path: change_file(path, document=lambda old: {**old, "validation": {"loss": 1.0}}),
            "it must be null or an object with an accuracy of 0 to 1",
        ),
        (
            lambda path: change_file(
                path, document=lambda old: {**old, "validation": {"accuracy": 0.5, "view": "ten_crops"}}
            ),
            r"has the view 'ten_crops', which is none of whole, whole_mirrored",
        ),
        (
            lambda path: change_file(path, document=lambda old: {**old, "computation": "gpu"}),
            "computation of its metadata is gpu; it must be null or an object",
        ),
        (
            lambda path: change_file(
                path, document=lambda old: {**old, "preprocessing": {**old["preprocessing"], "divisor": 0}}
            ),
            "a divisor of 0.0 is not positive and finite",
        ),
        (
            lambda path: change_file(
                path, document=lambda old: {**old, "preprocessing": {**old["preprocessing"], "divisor": float("nan")}}
            ),
            "a divisor of nan is not positive",
        ),
        (
            lambda path: change_file(
                path, document=lambda old: {**old, "preprocessing": {**old["preprocessing"], "standardize": "no"}}
            ),
            "standardize is 'no', not true or false",
        ),
        (
            lambda path: change_file(
                path, document=lambda old: {**old, "preprocessing": {**old["preprocessing"], "crop": 40.5}}
            ),
            "a crop of 40.5 is no part of",
        ),
        (
            lambda path: change_file(
                path, document=lambda old: {**old, "preprocessing": {**old["preprocessing"], "crop": True}}
            ),
            "a crop of True is no part of",
        ),
        (
            lambda path: change_file(path, document=lambda old: {**old, "step": "20"}),
            "step of its metadata is 20; it must be a whole number",
        ),
        (
            lambda path: change_file(path, document=lambda old: {**old, "config": {"model.depth": 51, "seed": -1}}),
            r"config\.model\.depth is 51; .*; config\.seed is -1; ",
        ),
        (
            lambda path: change_file(path, document=lambda old: {**old, "config": {"model.width_of": 2}}),
            r"was written by a newer version of fer_jax: this one has no config\.model\.width_of",
        ),
    ],
)
def test_a_weights_file_that_is_damaged_or_of_something_else_is_named(weights_file, tmp_path, damage, message):
    path = tmp_path / "net.safetensors"
    path.write_bytes(weights_file.read_bytes())
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        TrainedModel.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_weights_that_float16_can_not_hold_are_refused_and_nothing_is_written(trained, tmp_path):
    params = {**trained.variables["params"], "head": {"kernel": jnp.full((16, 7), 1e6), "bias": jnp.zeros(7)}}
    huge = dataclasses.replace(trained, variables={**trained.variables, "params": params})
    with pytest.raises(UserError, match=r"params\.head\.kernel holds a value that is not finite in float16"):
        huge.save(tmp_path / "net.safetensors", dtype="float16")
    assert list(tmp_path.iterdir()) == []
