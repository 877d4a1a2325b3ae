"""A trained network as an object: loaded from a run, applied to images."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
