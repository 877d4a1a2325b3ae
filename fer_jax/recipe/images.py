"""Preparation of images for the network: scaling, and augmentation on the device. Pure."""

import dataclasses

import dm_pix
import jax
import jax.numpy as jnp

from fer_jax.recipe.keys import Stream, example_keys

# Added to an image's standard deviation, so that an image of a single grey value becomes zeros.
STD_EPSILON = 1e-3
# Ranges of the image's share that random erasing covers and of its aspect ratio (Zhong et al. 2020, smaller area).
_ERASED_AREA = (0.02, 0.2)
_ERASED_RATIO = (0.3, 3.3)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Limits of the random changes to an image; the defaults leave images unchanged.

    flip: probability of a horizontal flip. alternating_flip: whether an image is flipped every other epoch instead
    (Jordan 2024, https://arxiv.org/abs/2404.00498, section 3.6). rotation: largest angle in degrees, in either
    direction. zoom, shift: largest zoom, in or out, and largest shift along each axis, in either direction; both as a
    fraction of the size. crop: height and width of the part that is kept, at a random position; None for the whole
    image. erasing: probability that a random rectangle is set to the image's mean value (Zhong et al. 2020,
    https://arxiv.org/abs/1708.04896).
    """

    flip: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    crop: int | None = None
    erasing: float = 0.0
    alternating_flip: bool = False

    def output_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns the (height, width, channels) of an augmented image."""
        return (self.crop, self.crop, image_shape[2]) if self.crop else image_shape


def scale_pixels(images, divisor: float = 255.0):
    """Returns uint8 images as float32, divided by `divisor`; by default the values are in [0, 1]."""
    return images.astype(jnp.float32) / divisor


def standardize(images):
    """Scales each of the float32 images [batch, height, width, channels] to mean 0 and a standard deviation of 1."""
    axes = (1, 2, 3)
    return (images - images.mean(axes, keepdims=True)) / (images.std(axes, keepdims=True) + STD_EPSILON)


def alternating_flips(index, epoch, *, seed: int):
    """Returns whether each image is flipped in this epoch, bool [batch]; an image is flipped every other epoch.

    index: int32 [batch], each image's index in its split, which decides whether it begins flipped. epoch: int32 [].
    """
    # A key depends on the image's index, since its position in a batch changes from epoch to epoch.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(jax.random.key(seed), Stream.FIRST_FLIP), index)
    return jax.vmap(jax.random.bernoulli)(keys) ^ (epoch % 2 == 1)


def augment_batch(images, *, seed: int, step, config: AugmentConfig, axis_name: str, flips=None):
    """Augments a device's images, float32 [batch, height, width, channels], each with its own key.

    step: int32 []. axis_name: the mapped axis over which the global batch is sharded. flips: bool [batch], or None to
    draw them with the probability `config.flip`.
    """
    keys = example_keys(seed, Stream.AUGMENTATION, step, len(images), axis_name)
    if flips is None:
        return jax.vmap(augment, (0, 0, None))(keys, images, config)
    return jax.vmap(augment, (0, 0, None, 0))(keys, images, config, flips)


def augment(key, image, config: AugmentConfig, flip=None):
    """Flips, rotates, zooms, shifts and crops one image in a single bilinear resampling, and erases a part of it.

    Args:
      key: a typed PRNG key.
      image: float32 [height, width, channels].
      flip: bool [], or None to draw it.

    Returns:
      float32 [height, width, channels], or [crop, crop, channels]. The image is rotated and zoomed about its own
      centre. Pixels from outside the image take the value of the nearest border pixel, so that no edge appears that
      isn't in the data.
    """
    # Coordinates are products of small matrices, which accelerators would by default round to a tenth of a pixel.
    with jax.default_matmul_precision("float32"):
        shape = config.output_shape(image.shape)
        matrix, offset = _sample_affine(key, shape, config, flip)
        if config.crop is None:
            image = dm_pix.affine_transform(image, matrix, offset=offset, order=1, mode="nearest")
        else:
            room = jnp.array([*image.shape[:2], 1]) - jnp.array([*shape[:2], 1])
            # `_sample_affine` uses the first four keys. The corner is a whole pixel, so that cropping doesn't blur.
            corner = jax.random.randint(jax.random.fold_in(key, 4), (3,), 0, room + 1)
            # dm_pix.affine_transform would return an image of the input's size.
            grid = jnp.stack(jnp.meshgrid(*map(jnp.arange, shape), indexing="ij"), axis=-1)
            coordinates = grid @ matrix.T + (offset + corner)
            image = dm_pix.flat_nd_linear_interpolate(image, jnp.moveaxis(coordinates, -1, 0))
    return _erase(jax.random.fold_in(key, 5), image, config.erasing) if config.erasing else image


def _sample_affine(key, shape, config: AugmentConfig, flip=None):
    """Draws the affine map from output to input pixels: matrix [3, 3] and offset [3], over (row, column, channel)."""
    flip_key, rotation_key, zoom_key, shift_key = jax.random.split(key, 4)
    if flip is None:
        flip = jax.random.bernoulli(flip_key, config.flip)
    flip = jnp.where(flip, -1.0, 1.0)
    angle = jnp.deg2rad(jax.random.uniform(rotation_key, minval=-config.rotation, maxval=config.rotation))
    # The map goes from output to input, so zooming in divides.
    scale = 1.0 / (1.0 + jax.random.uniform(zoom_key, minval=-config.zoom, maxval=config.zoom))
    size = jnp.array(shape[:2], jnp.float32)
    shift = jax.random.uniform(shift_key, (2,), minval=-config.shift, maxval=config.shift) * size

    cos, sin = jnp.cos(angle) * scale, jnp.sin(angle) * scale
    matrix = jnp.array([[cos, -sin * flip, 0.0], [sin, cos * flip, 0.0], [0.0, 0.0, 1.0]])
    # The third coordinate is the channel, which stays where it is.
    centre = jnp.append((size - 1) / 2, 0.0)
    return matrix, centre - matrix @ (centre + jnp.append(shift, 0.0))


def _erase(key, image, probability: float):
    """Sets a random rectangle of the image to the image's mean value, with the given probability."""
    happens, area, ratio, place = jax.random.split(key, 4)
    size = jnp.array(image.shape[:2], jnp.float32)
    area = jax.random.uniform(area, minval=_ERASED_AREA[0], maxval=_ERASED_AREA[1]) * size.prod()
    # The ratio's logarithm is uniform, so that tall and wide rectangles are equally likely.
    log_ratio = jax.random.uniform(ratio, minval=jnp.log(_ERASED_RATIO[0]), maxval=jnp.log(_ERASED_RATIO[1]))
    sides = jnp.minimum(jnp.sqrt(area * jnp.exp(jnp.array([log_ratio, -log_ratio]))), size)
    first = jax.random.uniform(place, (2,)) * (size - sides)
    rows, columns = (
        (jnp.arange(length) >= first[axis]) & (jnp.arange(length) < first[axis] + sides[axis])
        for axis, length in enumerate(image.shape[:2])
    )
    erased = rows[:, None, None] & columns[None, :, None] & jax.random.bernoulli(happens, probability)
    return jnp.where(erased, image.mean(), image)
