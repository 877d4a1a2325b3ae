"""The inputs of the head."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from fer_jax.inference.features import make_features
from fer_jax.inference.trained_model import TrainedModel

RUN = pathlib.Path(__file__).parents[1] / "fixtures" / "run_0.1"


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    return TrainedModel.load(RUN)


def random_images(number: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, 48, 48, 1), dtype=np.uint8)


def test_the_head_makes_the_logits_of_them(trained):
    images = random_images(5)
    features = jax.jit(make_features(trained.model, trained.preprocessing))(trained.variables, images)
    head = trained.variables["params"]["head"]
    assert features.shape == (5, head["kernel"].shape[0])
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], trained.logits(images), atol=1e-4)


def test_of_many_views_it_is_the_plain_one(trained):
    def features(preprocessing, images):
        return jax.jit(make_features(trained.model, preprocessing))(trained.variables, images)

    images = random_images(3)
    plain = features(trained.preprocessing, images)
    mirrored = dataclasses.replace(trained.preprocessing, view="whole_mirrored")
    np.testing.assert_allclose(features(mirrored, images), plain, atol=1e-5)
    crops = dataclasses.replace(trained.preprocessing, crop=40, view="ten_crops")
    cropped = features(crops, images)
    centre = features(trained.preprocessing, images[:, 4:44, 4:44])
    np.testing.assert_allclose(cropped, centre, atol=1e-5)
