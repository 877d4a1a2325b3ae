"""What happens to images before the network: scaling, and augmentation on the device. Pure."""

import dataclasses

import dm_pix
import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How far an image may be changed; zeros leave images as they are.

    flip: probability of a horizontal flip. rotation: degrees, at most, either way. zoom: in or out, at most; shift:
    along each axis, at most, either way; both as a fraction of the image's size.
    """

    flip: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0


def scale_pixels(images, divisor: float = 255.0):
    """Returns uint8 images as float32, divided by `divisor`: in [0, 1] by default."""
    return images.astype(jnp.float32) / divisor


def augment_batch(images, *, seed: int, step, config: AugmentConfig, axis_name: str):
    """Augments a device's images, float32 [batch, height, width, channels], each with its own key.

    The key is made of seed, step and the image's position in the global batch, so that an image is treated alike on any
    number of devices. step: int32 []. axis_name: the mapped axis over which the global batch is spread.
    """
    # Key 0 of the seed draws the weights (recipe/state.py).
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step)
    positions = lax.axis_index(axis_name) * len(images) + jnp.arange(len(images))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    return jax.vmap(augment, (0, 0, None))(keys, images, config)


def augment(key, image, config: AugmentConfig):
    """Flips, rotates, zooms and shifts one image about its centre in a single bilinear resampling.

    Args:
      key: a typed PRNG key.
      image: float32 [height, width, channels].

    Returns:
      float32 [height, width, channels]. What lies outside the image takes the value of the nearest pixel of its border,
      so that no edge appears which isn't in the data.
    """
    # Coordinates are products of small matrices, which accelerators would round to a tenth of a pixel.
    with jax.default_matmul_precision("float32"):
        matrix, offset = _sample_affine(key, image.shape, config)
        return dm_pix.affine_transform(image, matrix, offset=offset, order=1, mode="nearest")


def _sample_affine(key, shape, config: AugmentConfig):
    """Draws the map from output to input pixels: matrix [3, 3] and offset [3], over (row, column, channel)."""
    flip_key, rotation_key, zoom_key, shift_key = jax.random.split(key, 4)
    flip = jnp.where(jax.random.bernoulli(flip_key, config.flip), -1.0, 1.0)
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
