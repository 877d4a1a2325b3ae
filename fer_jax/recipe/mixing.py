"""Mixup and cutmix, which mix each image and its target with those of another image of the batch. Pure."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from fer_jax.recipe.keys import Stream, positions, step_key


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """How examples are mixed; the defaults leave them as they are.

    mixup, cutmix: alpha of the distribution of an image's share, Beta(alpha, alpha), or 0 for none (Zhang et al. 2018,
    https://arxiv.org/abs/1710.09412; Yun et al. 2019, https://arxiv.org/abs/1905.04899). If both are set, each is used
    in half of the steps. probability: probability that a step is mixed at all. off_epochs: number of epochs at the end
    that are not mixed.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    off_epochs: int = 0

    @property
    def is_on(self) -> bool:
        return bool(self.mixup or self.cutmix)


NO_MIXING = MixConfig()


def mix_batch(images, targets, *, seed: int, step, last_step: int, config: MixConfig, axis_name: str):
    """Returns a device's images and targets, each mixed with that of a partner image.

    The partner is found by its position in the global batch, so that the batch is the same on any number of devices.
    All examples of a step have the same share, as in the papers.

    Args:
      images: float32 [batch, height, width, channels]. targets: float32 [batch, classes].
      step: int32 []. last_step: from this step on nothing is mixed.
      axis_name: the mapped axis over which the global batch is sharded.
    """
    distance, happens, which, share, box = jax.random.split(step_key(seed, Stream.MIXING, step), 5)
    # A partner may be on any device.
    all_images, all_targets = lax.all_gather((images, targets), axis_name, tiled=True)
    # The distance is at least 1 and less than the batch size, so that no image is its own partner.
    distance = jax.random.randint(distance, (), 1, max(2, len(all_images)))
    partners = (positions(len(images), axis_name) + distance) % len(all_images)
    other_images, other_targets = all_images[partners], all_targets[partners]

    use_cutmix = jax.random.bernoulli(which) if config.mixup and config.cutmix else bool(config.cutmix)
    # If only one of the two is set, the alpha of the other is 0, but it is never chosen.
    alpha = jnp.where(use_cutmix, config.cutmix, config.mixup)
    share = jax.random.beta(share, alpha, alpha)
    is_mixed = jax.random.bernoulli(happens, config.probability) & (step < last_step)
    # Cutmix replaces a box that covers the partner's share of the image.
    in_box = _box(box, images.shape[1:3], 1 - share)
    weight = jnp.where(use_cutmix, 1.0 - in_box, share)
    weight = jnp.where(is_mixed, weight, 1.0)
    # The part of the box beyond the image's borders is cut off, which increases the image's own share.
    share = weight.mean()
    mixed_images = weight[..., None] * images + (1 - weight[..., None]) * other_images
    return mixed_images, share * targets + (1 - share) * other_targets


def _box(key, shape, area):
    """Returns a mask, float32 [height, width], that is 1 in a box at a random centre; area: the uncut box's share."""
    size = jnp.array(shape, jnp.float32)
    sides, centre = size * jnp.sqrt(area), jax.random.uniform(key, (2,)) * size
    rows, columns = (
        jnp.abs(jnp.arange(length) + 0.5 - centre[axis]) < sides[axis] / 2 for axis, length in enumerate(shape)
    )
    return (rows[:, None] & columns[None, :]).astype(jnp.float32)
