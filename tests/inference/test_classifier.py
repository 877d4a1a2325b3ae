"""A trained network put to use on faces."""

import pathlib

import numpy as np

from fer_jax import Classifier

RUN = pathlib.Path(__file__).parents[1] / "fixtures" / "run_0.1"


def test_faces_get_the_probabilities_of_the_network():
    classifier = Classifier(RUN)
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 1), dtype=np.uint8)
    probabilities = classifier.faces(images)
    np.testing.assert_array_equal(probabilities, classifier.trained.probabilities(images))
    assert probabilities.shape == (3, len(classifier.class_names))
