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
from fer_jax.errors import UserError
from fer_jax.inference.classifier import Classifier, Preprocessing

RUN = pathlib.Path(__file__).parents[1] / "fixtures" / "run_0.1"


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load(RUN)


def random_images(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, 48, 48, 1), dtype=np.uint8)


def test_a_run_is_loaded_with_its_names_preprocessing_config_and_step(classifier):
    assert classifier.class_names == CLASS_NAMES
    assert classifier.preprocessing == Preprocessing((48, 48, 1), 255.0)
    assert classifier.step == 20
    assert (classifier.config.model.depth, classifier.config.model.width) == (18, 2)
    assert classifier.metadata["dataset_fingerprint"] == "b326fd2395d9a543"


@pytest.mark.parametrize("number", [1, 3, 64, 70])
def test_logits_are_those_of_the_model_on_scaled_images_for_any_number(classifier, number):
    images = random_images(number)
    logits = classifier.logits(images)
    assert logits.shape == (number, 7)
    assert logits.dtype == np.float32
    model = classifier.model.clone(conv_fn=jax.lax.conv_general_dilated)
    variables = jax.device_get(classifier.variables)
    expected = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, jnp.float32(images) / 255)
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_no_images_have_no_logits(classifier):
    assert classifier.logits(random_images(0)).shape == (0, 7)


def test_probabilities_are_the_softmax_of_the_logits(classifier):
    images = random_images(5)
    exponentials = np.exp(classifier.logits(images).astype(np.float64))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.probabilities(images), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 48, 48), np.uint8),
        np.zeros((48, 48, 1), np.uint8),
        np.zeros((2, 40, 40, 1), np.uint8),
        np.zeros((2, 48, 48, 1), np.float32),
    ],
)
def test_images_of_another_kind_are_an_error_that_says_what_would_be_right(classifier, images):
    with pytest.raises(UserError, match=r"takes uint8 \[n, 48, 48, 1\]"):
        classifier.logits(images)


def test_a_folder_without_a_run_and_a_missing_checkpoint_are_errors(tmp_path):
    with pytest.raises(UserError, match="the workdir of a run"):
        Classifier.load(tmp_path)
    with pytest.raises(UserError, match="no checkpoint '7'"):
        Classifier.load(RUN, "7")


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
def weights_file(classifier, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    classifier.save(path)
    return path


def test_a_weights_file_is_the_same_network(classifier, weights_file):
    loaded = Classifier.load(weights_file)
    images = random_images(5)
    np.testing.assert_array_equal(loaded.logits(images), classifier.logits(images))
    assert (loaded.class_names, loaded.preprocessing, loaded.step) == (
        classifier.class_names,
        classifier.preprocessing,
        classifier.step,
    )
    assert loaded.config.model == classifier.config.model
    assert loaded.metadata["dataset_fingerprint"] == classifier.metadata["dataset_fingerprint"]
    # And once more, as a file of a file.
    loaded.save(weights_file.with_name("again.safetensors"))
    assert weights_file.with_name("again.safetensors").read_bytes() == weights_file.read_bytes()


def test_a_weights_file_is_a_plain_safetensors_file_that_tells_nothing_of_the_machine(classifier, weights_file):
    tensors = safetensors.numpy.load_file(weights_file)
    np.testing.assert_array_equal(
        tensors["params.stem_conv.kernel"], classifier.variables["params"]["stem_conv"]["kernel"]
    )
    with safetensors.safe_open(weights_file, framework="numpy") as file:
        metadata = json.loads(file.metadata()["fer_jax"])
    assert metadata["class_names"] == list(CLASS_NAMES)
    assert (metadata["config"]["dataset"]["path"], metadata["config"]["dataset"]["cache_dir"]) == (None, None)
    assert metadata.keys().isdisjoint({"dataset_path", "progress"})


def test_float16_halves_the_kernels_and_keeps_what_is_small_in_float32(classifier, weights_file, tmp_path):
    path = tmp_path / "half.safetensors"
    classifier.save(path, dtype="float16")
    tensors = safetensors.numpy.load_file(path)
    assert {str(tensor.dtype) for tensor in tensors.values() if tensor.ndim > 1} == {"float16"}
    assert {str(tensor.dtype) for tensor in tensors.values() if tensor.ndim == 1} == {"float32"}
    images = random_images(5)
    np.testing.assert_allclose(Classifier.load(path).logits(images), classifier.logits(images), atol=0.01)
    with pytest.raises(UserError, match="stored as float32 or float16, not as int8"):
        classifier.save(path, dtype="int8")


def change_file(path: pathlib.Path, *, tensors=None, document=None) -> None:
    """Writes the file again with other tensors or metadata: functions of what is there."""
    stored = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
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
    ],
)
def test_a_weights_file_that_is_damaged_or_of_something_else_is_named(weights_file, tmp_path, damage, message):
    path = tmp_path / "net.safetensors"
    path.write_bytes(weights_file.read_bytes())
    damage(path)
    with pytest.raises(UserError, match=message):
        Classifier.load(path)


def test_weights_that_float16_can_not_hold_are_refused_and_nothing_is_written(classifier, tmp_path):
    params = {**classifier.variables["params"], "head": {"kernel": jnp.full((16, 7), 1e6), "bias": jnp.zeros(7)}}
    huge = dataclasses.replace(classifier, variables={**classifier.variables, "params": params})
    with pytest.raises(UserError, match=r"params\.head\.kernel holds a value that is not finite in float16"):
        huge.save(tmp_path / "net.safetensors", dtype="float16")
    assert list(tmp_path.iterdir()) == []
