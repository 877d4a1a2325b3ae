"""Preprocessing of images for a trained network, and the views of an image that the network is shown."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fer_jax import config as config_lib
from fer_jax.recipe.images import scale_pixels, standardize


class View(NamedTuple):
    """A view of an image.

    is_cropped: whether it shows crops, of the size that the network was trained on. count: the number of pictures.
    """

    is_cropped: bool
    count: int


# A view of several pictures takes the mean of their probabilities. The pictures are, in this order: the image and its
# mirror image; or the centre and the four corner crops, each followed by its mirror image (Krizhevsky et al. 2012).
VIEWS = {
    "whole": View(False, 1),
    "whole_mirrored": View(False, 2),
    "centre_crop": View(True, 1),
    "ten_crops": View(True, 10),
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Preprocesses images for the network; stored with the weights.

    image_shape: (height, width, channels). divisor: the uint8 pixel values are divided by it. standardize: whether
    each image's mean is subtracted, and the rest divided by its standard deviation. crop: the size of crops, or None.
    view: the name in VIEWS of the view that is shown by default.
    """

    image_shape: tuple[int, int, int]
    divisor: float = 255.0
    standardize: bool = False
    crop: int | None = None
    view: str = "whole"

    def __call__(self, images):
        """Returns the images, float32, from which views are cut; images: uint8 [batch, *image_shape]."""
        images = scale_pixels(images, self.divisor)
        return standardize(images) if self.standardize else images

    @property
    def possible_views(self) -> list[str]:
        """The views that can be shown: those with crops need a size of crops."""
        return [name for name, view in VIEWS.items() if self.crop or not view.is_cropped]

    def to_metadata(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"image_shape": list(self.image_shape)}

    @classmethod
    def from_metadata(cls, stored: Mapping[str, Any]) -> "Preprocessing":
        """Returns the preprocessing that was stored; raises KeyError, TypeError or ValueError if it is invalid."""
        # Version 0.1.0 stored the text 'uint8 / 255' in place of the divisor.
        divisor = 255.0 if stored.get("pixels") == "uint8 / 255" else float(stored["divisor"])
        # Metadata that were stored before these options existed lack them.
        chosen = {key: stored[key] for key in ("standardize", "crop", "view") if key in stored}
        preprocessing = cls(tuple(stored["image_shape"]), divisor, **chosen)
        crop = preprocessing.crop
        if not (math.isfinite(divisor) and divisor > 0):
            raise ValueError(f"a divisor of {divisor} is not positive and finite")
        if type(preprocessing.standardize) is not bool:
            raise ValueError(f"standardize is {preprocessing.standardize!r}, not true or false")
        if crop is not None and not (type(crop) is int and 1 <= crop <= min(preprocessing.image_shape[:2])):
            raise ValueError(f"a crop of {crop} is no part of {preprocessing.image_shape}")
        if preprocessing.view not in preprocessing.possible_views:
            raise ValueError(f"view {preprocessing.view!r} is none of {', '.join(preprocessing.possible_views)}")
        return preprocessing


def make_preprocessing(config: Mapping[str, Any], image_shape: tuple[int, int, int]) -> Preprocessing:
    """Returns the preprocessing of a config for images of this shape."""
    return Preprocessing(
        image_shape,
        standardize=config["preprocessing"]["standardize"],
        crop=config["augment"]["crop"],
        view=config_lib.training_view(config),
    )


def predict_views(
    network: Callable, images, names: Sequence[str], preprocessing: Preprocessing
) -> dict[str, jax.Array]:
    """Returns the logits of each view, float32 [batch, classes].

    Args:
      network: float32 images [n, height, width, channels] -> logits [n, classes].
      images: uint8 [batch, *image_shape].
      names: names of views in VIEWS.
    """
    images = preprocessing(images)
    logits = {}
    for is_cropped in (False, True):
        wanted = {name: VIEWS[name].count for name in names if VIEWS[name].is_cropped == is_cropped}
        if not wanted:
            continue
        # All pictures of a size go through the network at once; each view is the first few of them.
        crop = preprocessing.crop if is_cropped else None
        cut = [_cut(images, picture) for picture in _pictures(images.shape[1:], crop, max(wanted.values()))]
        pictures = jnp.stack(cut)
        # The batch size is taken from the shape, because len() fails if it is symbolic (jax.export).
        each = network(pictures.reshape(-1, *pictures.shape[2:])).reshape(len(cut), images.shape[0], -1)
        logits |= {name: _combine(each[:count]) for name, count in wanted.items()}
    return {name: logits[name] for name in names}


class Picture(NamedTuple):
    """A part of an image, [top : top + height, left : left + width], mirrored or not."""

    top: int
    left: int
    height: int
    width: int
    is_mirrored: bool


def pictures_of(view: str, preprocessing: Preprocessing) -> list[Picture]:
    """Returns the pictures of an image that a view of VIEWS shows, in order."""
    crop = preprocessing.crop if VIEWS[view].is_cropped else None
    return _pictures(preprocessing.image_shape, crop, VIEWS[view].count)


def _pictures(image_shape: Sequence[int], crop: int | None, count: int) -> list[Picture]:
    height, width = image_shape[:2]
    size = (height, width) if crop is None else (crop, crop)
    bottom, right = height - size[0], width - size[1]
    # If the picture is the whole image, all five positions are the same, and no view shows more than one of them.
    corners = [(bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)]
    both = [Picture(*corner, *size, is_mirrored) for corner in corners for is_mirrored in (False, True)]
    return both[:count]


def _cut(images, picture: Picture):
    """Returns a picture that is cut out of float32 images [batch, height, width, channels]."""
    part = images[:, picture.top : picture.top + picture.height, picture.left : picture.left + picture.width]
    return part[:, :, ::-1] if picture.is_mirrored else part


def _combine(logits):
    """Returns the log of the mean probabilities over pictures [pictures, batch, classes]; for one, its logits."""
    # Logits keep more information than probabilities, and stay the same as before views existed.
    if len(logits) == 1:
        return logits[0]
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(len(logits))
