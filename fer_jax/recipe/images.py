"""Augmentation on the device, pure: (key, image) -> image."""

import dataclasses

import dm_pix
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Ranges:
    """How far an image may be changed; every value zero leaves images as they are.

    flip: probability of a horizontal flip. rotation: degrees, at most, either way. zoom: in or out, at most, and
    shift: either way, along each axis, at most; both as a fraction of the image's size.
    """

    flip: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0


def augment(key, image, ranges: Ranges):
    """Flips, rotates, zooms and shifts one image about its centre in a single bilinear resampling.

    key: a typed PRNG key; image: float [height, width, channels]. What lies outside the image takes the value of
    the nearest pixel of its border, so no edge appears that isn't in the data.
    """
    # Coordinates are products of small matrices, which accelerators would round to a tenth of a pixel.
    with jax.default_matmul_precision("float32"):
        matrix, offset = _sample_affine(key, image.shape, ranges)
        return dm_pix.affine_transform(image, matrix, offset=offset, order=1, mode="nearest")


def _sample_affine(key, shape, ranges: Ranges):
    """Draws the map from output to input pixels: matrix [3, 3] and offset [3], over (row, column, channel)."""
    flip_key, rotation_key, zoom_key, shift_key = jax.random.split(key, 4)
    flip = jnp.where(jax.random.bernoulli(flip_key, ranges.flip), -1.0, 1.0)
    angle = jnp.deg2rad(jax.random.uniform(rotation_key, minval=-ranges.rotation, maxval=ranges.rotation))
    scale = 1.0 / (1.0 + jax.random.uniform(zoom_key, minval=-ranges.zoom, maxval=ranges.zoom))
    size = jnp.array(shape[:2], jnp.float32)
    shift = jax.random.uniform(shift_key, (2,), minval=-ranges.shift, maxval=ranges.shift) * size

    cos, sin = jnp.cos(angle) * scale, jnp.sin(angle) * scale
    matrix = jnp.array([[cos, -sin * flip, 0.0], [sin, cos * flip, 0.0], [0.0, 0.0, 1.0]])
    centre = jnp.append((size - 1) / 2, 0.0)
    return matrix, centre - matrix @ (centre + jnp.append(shift, 0.0))
