"""Mixup and cutmix: by value, and the same on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from fer_jax.parallel import AXIS_NAME
from fer_jax.recipe.mixing import MixConfig, mix_batch

BATCH_SIZE, SIZE, LAST_STEP = 16, 12, 100
# Each image has a single value of its own, so that a mixed pixel shows its two images and their shares.
VALUES = 2.0 ** np.arange(BATCH_SIZE)
IMAGES = np.broadcast_to(VALUES[:, None, None, None], (BATCH_SIZE, SIZE, SIZE, 1)).astype(np.float32)
TARGETS = np.eye(BATCH_SIZE, dtype=np.float32)


@functools.cache
def _mix(config: MixConfig, num_devices: int):
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (AXIS_NAME,), axis_types=(AxisType.Auto,))
    mix = functools.partial(mix_batch, seed=0, last_step=LAST_STEP, config=config, axis_name=AXIS_NAME)
    split, whole = PartitionSpec(AXIS_NAME), PartitionSpec()
    mapped = jax.shard_map(
        lambda images, targets, step: mix(images, targets, step=step),
        mesh=mesh,
        in_specs=(split, split, whole),
        out_specs=split,
        check_vma=False,
    )
    return jax.jit(mapped)


def mixed(config: MixConfig, step: int, num_devices: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return jax.tree.map(np.asarray, _mix(config, num_devices)(IMAGES, TARGETS, jnp.int32(step)))


CONFIGS = [MixConfig(mixup=0.5), MixConfig(cutmix=1.0), MixConfig(mixup=0.5, cutmix=1.0)]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_images_and_targets_are_mixed_by_the_same_shares(config):
    shares = []
    for step in range(20):
        images, targets = mixed(config, step)
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
        # The mean of an image is the mean of its two values, weighted by their shares.
        np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), targets @ VALUES, rtol=1e-4)
        assert ((targets > 0).sum(axis=1) <= 2).all()
        shares.append(np.diagonal(targets))
    # All images of a step have the same share, and every step has another one.
    assert (np.ptp(shares, axis=1) < 1e-6).all()
    assert len(np.unique(np.round(np.mean(shares, axis=1), 4))) > 15


def test_every_image_has_another_one_as_its_partner():
    _, targets = mixed(MixConfig(mixup=1.0), 3)
    partners = (targets * (1 - np.eye(BATCH_SIZE))).argmax(axis=1)
    assert sorted(partners) == list(range(BATCH_SIZE))
    assert len(set((partners - np.arange(BATCH_SIZE)) % BATCH_SIZE)) == 1
    assert not (partners == np.arange(BATCH_SIZE)).any()


def test_mixup_blends_and_cutmix_replaces_a_box():
    images, targets = mixed(MixConfig(mixup=1.0), 3)
    assert len(np.unique(images[5])) == 1
    assert 0 < targets[5, 5] < 1
    images, targets = mixed(MixConfig(cutmix=1.0), 3)
    values, counts = np.unique(images[5], return_counts=True)
    assert len(values) == 2
    rows, columns, _ = np.nonzero(images[5] != VALUES[5])
    # The partner's pixels fill a rectangle whose area is the partner's share.
    assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert len(rows) / SIZE**2 == pytest.approx(1 - targets[5, 5], abs=1e-6)
    assert counts.sum() == SIZE**2


def test_the_share_has_the_distribution_of_beta():
    shares = np.array([mixed(MixConfig(mixup=0.4), step)[1][0, 0] for step in range(100)])
    # Beta(0.4, 0.4) has mean 1/2 and variance 1 / (4 * 1.8).
    assert shares.mean() == pytest.approx(0.5, abs=0.12)
    assert shares.var() == pytest.approx(1 / 7.2, abs=0.04)


def test_a_step_is_mixed_with_the_probability_and_not_in_the_last_epochs():
    is_mixed = [
        not np.array_equal(mixed(MixConfig(mixup=1.0, probability=0.3), step)[1], TARGETS) for step in range(100)
    ]
    assert 15 <= sum(is_mixed) <= 45
    for step in (LAST_STEP, LAST_STEP + 1):
        images, targets = mixed(MixConfig(mixup=1.0), step)
        np.testing.assert_array_equal(images, IMAGES)
        np.testing.assert_array_equal(targets, TARGETS)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_batch_is_the_same_on_any_number_of_devices(config):
    alone = mixed(config, 7)
    for num_devices in (2, 8):
        for ours, theirs in zip(mixed(config, 7, num_devices), alone, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
