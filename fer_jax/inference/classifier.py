"""A trained network put to use on pictures of faces."""

import os

import numpy as np

from fer_jax.inference import weights
from fer_jax.inference.trained_model import TrainedModel


class Classifier:
    """Says which expressions faces have.

    trained: the network, with its config and metadata.
    """

    def __init__(self, source: str | os.PathLike = weights.PRETRAINED, checkpoint: str | None = None):
        """Loads a network.

        Args:
          source: 'pretrained', the network that is installed with the package; the workdir of a run; or a weights file.
          checkpoint: of a run: 'best' (by validation accuracy; the default), 'latest' or a step.

        Raises:
          UserError: there is no such run, checkpoint or file, it is damaged, or a checkpoint of a file is asked for.
        """
        self.trained = TrainedModel.load(source, checkpoint)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the expressions, in the order of `faces`."""
        return self.trained.class_names

    def faces(self, images: np.ndarray) -> np.ndarray:
        """Returns the probability of each expression, float32 [n, classes].

        images: uint8 [n, height, width, channels] of faces, as the network was trained on; raises UserError where they
        have another shape or dtype.
        """
        return self.trained.probabilities(images)
