import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, PartitionSpec

from fer_jax.parallel import AXIS_NAME
from fer_jax.recipe import images as images_lib
from fer_jax.recipe.images import AugmentConfig, augment, augment_batch, scale_pixels

SIZE = 48
NUM_KEYS = 64
CENTRE = (SIZE - 1) / 2


@jax.jit
def _augment(keys, image, flip, rotation, zoom, shift):
    config = AugmentConfig(flip, rotation, zoom, shift)
    return jax.vmap(augment, (0, None, None))(keys, image[..., None], config)[..., 0]


def augmented(image, config: AugmentConfig, seed: int = 0) -> np.ndarray:
    """Augments one image, float [48, 48], with each of 64 keys: [64, 48, 48]."""
    keys = jax.random.split(jax.random.key(seed), NUM_KEYS)
    values = (config.flip, config.rotation, config.zoom, config.shift)
    return np.asarray(_augment(keys, np.asarray(image, np.float32), *map(np.float32, values)))


@functools.cache
def sampled(config: AugmentConfig, shape=(SIZE, SIZE, 1), number: int = 2000):
    """Returns the maps drawn with many keys: matrices [N, 3, 3] and offsets [N, 3]."""
    sample = jax.vmap(images_lib._sample_affine, (0, None, None))
    keys = jax.random.split(jax.random.key(0), number)
    return jax.tree.map(np.asarray, jax.jit(sample, static_argnums=(1, 2))(keys, shape, config))


def random_image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(SIZE, SIZE)).astype(np.float32)


def blob(row: float = CENTRE, column: float = CENTRE) -> np.ndarray:
    rows, columns = np.indices((SIZE, SIZE))
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 2.0**2))


def centre_of_mass(images) -> np.ndarray:
    return np.array([scipy.ndimage.center_of_mass(image) for image in images])


def test_zero_ranges_give_the_image_exactly():
    image = random_image()
    np.testing.assert_array_equal(augmented(image, AugmentConfig()), np.broadcast_to(image, (NUM_KEYS, SIZE, SIZE)))


def test_a_certain_flip_mirrors_left_and_right_exactly():
    image = random_image()
    flipped = np.broadcast_to(image[:, ::-1], (NUM_KEYS, SIZE, SIZE))
    np.testing.assert_array_equal(augmented(image, AugmentConfig(flip=1.0)), flipped)


def test_a_flip_at_one_half_gives_both_kinds_and_nothing_else():
    image = random_image()
    results = augmented(image, AugmentConfig(flip=0.5))
    is_flipped = (results == image[:, ::-1]).all(axis=(1, 2))
    is_same = (results == image).all(axis=(1, 2))
    assert (is_flipped ^ is_same).all()
    assert 16 < is_flipped.sum() < 48  # four standard deviations either side of 32


def test_rotation_equals_an_independent_resampling_by_the_same_angle():
    image, config = random_image(), AugmentConfig(rotation=30.0)
    matrices, _ = sampled(config, number=NUM_KEYS)
    for matrix, result in zip(matrices, augmented(image, config), strict=True):
        angle = np.arctan2(matrix[1, 0], matrix[0, 0])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        offset = CENTRE - turn @ [CENTRE, CENTRE]
        expected = scipy.ndimage.affine_transform(image.astype(np.float64), turn, offset, order=1, mode="nearest")
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-4)


def test_everything_at_once_equals_an_independent_resampling():
    image, config = random_image(), AugmentConfig(flip=0.5, rotation=40.0, zoom=0.3, shift=0.2)
    for matrix, offset, result in zip(*sampled(config, number=NUM_KEYS), augmented(image, config), strict=True):
        expected = scipy.ndimage.affine_transform(
            image.astype(np.float64), matrix[:2, :2].astype(np.float64), offset[:2], order=1, mode="nearest"
        )
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-4)


def test_angles_zooms_and_shifts_fill_their_ranges_and_stay_within():
    config, shape = AugmentConfig(flip=0.5, rotation=20.0, zoom=0.25, shift=0.1), (40, 20, 1)
    matrices, offsets = sampled(config, shape)
    matrices = matrices.astype(np.float64)
    scales = np.sqrt(np.abs(np.linalg.det(matrices[:, :2, :2])))
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    # The place to which the centre moves gives the shift.
    centre = np.array([19.5, 9.5, 0.0])
    shifts = -np.linalg.solve(matrices, (matrices @ centre + offsets - centre)[..., None])[:, :2, 0] / [40, 20]
    flips = np.linalg.det(matrices) < 0

    for values, low, high in (
        (angles, -20, 20),
        (1 / scales, 0.75, 1.25),
        (shifts[:, 0], -0.1, 0.1),
        (shifts[:, 1], -0.1, 0.1),
    ):
        span = high - low
        assert low - 1e-4 * span <= values.min() < low + 0.01 * span
        assert high - 0.01 * span < values.max() <= high + 1e-4 * span
        assert abs(values.mean() - (low + high) / 2) < 0.03 * span  # over four standard errors
    assert 0.45 < flips.mean() < 0.55
    # No two of them are drawn from the same key.
    drawn = np.corrcoef([angles, scales, *shifts.T, flips])
    assert np.abs(drawn - np.eye(5)).max() < 0.1
    # The map is a similarity: there is no shear, and the scale is the same along both axes.
    products = np.einsum("nij,nik->njk", matrices[:, :2, :2], matrices[:, :2, :2])
    np.testing.assert_allclose(products, scales[:, None, None] ** 2 * np.eye(2), atol=1e-5)


@pytest.mark.parametrize(
    "config", [AugmentConfig(rotation=180.0), AugmentConfig(zoom=0.4), AugmentConfig(0.5, 180.0, 0.4)], ids=str
)
def test_what_is_in_the_centre_stays_there(config):
    results = augmented(blob(), config)
    np.testing.assert_allclose(centre_of_mass(results), CENTRE, atol=0.02)


def test_zoom_goes_in_and_out_and_leaves_the_aspect_ratio():
    results = augmented(blob(), AugmentConfig(zoom=0.4))
    offsets = np.arange(SIZE) - CENTRE
    spread = np.array([[np.sum(i.sum(axis) * offsets**2) / i.sum() for axis in (0, 1)] for i in results]) ** 0.5
    np.testing.assert_allclose(spread[:, 0], spread[:, 1], rtol=0.01)
    assert 2.0 * 0.6 - 0.1 < spread.min() < 2.0 * 0.8
    assert 2.0 * 1.2 < spread.max() < 2.0 * 1.4 + 0.1


def test_shift_moves_by_at_most_its_fraction_and_along_both_axes():
    moved = centre_of_mass(augmented(blob(), AugmentConfig(shift=0.2))) - CENTRE
    limit = 0.2 * SIZE
    assert np.abs(moved).max() <= limit + 0.02
    assert (moved.max(axis=0) > 0.8 * limit).all()
    assert (moved.min(axis=0) < -0.8 * limit).all()
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.5


@given(
    seed=st.integers(0, 2**31 - 1),
    low=st.floats(0, 0.5),
    high=st.floats(0.5, 1),
    config=st.builds(AugmentConfig, st.floats(0, 1), st.floats(0, 180), st.floats(0, 0.9), st.floats(0, 0.9)),
)
def test_values_stay_between_the_images_darkest_and_lightest(seed, low, high, config):
    image = (low + (high - low) * random_image(seed)).astype(np.float32)
    results = augmented(image, config, seed)
    assert image.min() - 1e-6 <= results.min()
    assert results.max() <= image.max() + 1e-6


@given(value=st.floats(0, 1, width=32), seed=st.integers(0, 2**31 - 1))
def test_a_constant_image_stays_constant_up_to_its_borders(value, seed):
    config = AugmentConfig(flip=0.5, rotation=180.0, zoom=0.5, shift=0.5)
    np.testing.assert_allclose(augmented(np.full((SIZE, SIZE), value), config, seed), value, rtol=0, atol=1e-6)


def test_outside_the_image_is_its_border():
    """A shift leaves a margin that repeats the outermost row or column rather than black or the far side."""
    image = np.broadcast_to(np.linspace(0.25, 1.0, SIZE)[:, None], (SIZE, SIZE))
    results = augmented(image, AugmentConfig(shift=0.5))
    columns = results[:, :, 0]
    np.testing.assert_allclose(results, np.broadcast_to(columns[..., None], results.shape), rtol=0, atol=1e-6)
    assert (np.diff(columns, axis=1) > -1e-6).all()
    moved_down = columns[:, 1] == columns[:, 0]
    assert moved_down.any()
    np.testing.assert_allclose(columns[moved_down, 0], 0.25, atol=1e-6)


def test_the_key_decides():
    image, config = random_image(), AugmentConfig(flip=0.5, rotation=10.0, zoom=0.1)
    results = augmented(image, config, seed=1)
    np.testing.assert_array_equal(results, augmented(image, config, seed=1))
    assert (np.abs(results - augmented(image, config, seed=2)).max(axis=(1, 2)) > 0.01).all()
    assert len(np.unique(results.reshape(NUM_KEYS, -1), axis=0)) == NUM_KEYS


# Augmentation as part of the training step.

BATCH = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 1), np.uint8)
CONFIG = AugmentConfig(flip=0.5, rotation=10.0, zoom=0.1, shift=0.1)


@functools.cache
def _step_augmentation(num_devices: int, config: AugmentConfig, seed: int):
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (AXIS_NAME,), axis_types=(AxisType.Auto,))

    def augment_part(images, step):
        return augment_batch(scale_pixels(images), seed=seed, step=step, config=config, axis_name=AXIS_NAME)

    specs = PartitionSpec(AXIS_NAME)
    return jax.jit(jax.shard_map(augment_part, mesh=mesh, in_specs=(specs, PartitionSpec()), out_specs=specs))


def step_augmented(
    images, *, step: int, num_devices: int = 8, config: AugmentConfig = CONFIG, seed: int = 0
) -> np.ndarray:
    return np.asarray(_step_augmentation(num_devices, config, seed)(images, jnp.int32(step)))


def test_a_step_gives_the_same_images_on_any_number_of_devices():
    on_one = step_augmented(BATCH, step=7, num_devices=1)
    # For another batch size the compiler rounds coordinates differently: by 1e-5 of the range of grey values.
    np.testing.assert_allclose(step_augmented(BATCH, step=7, num_devices=8), on_one, rtol=0, atol=1e-5)
    assert on_one.dtype == np.float32
    assert on_one.shape == BATCH.shape
    assert on_one.min() >= 0
    assert on_one.max() <= 1 + 1e-6


def test_every_position_of_the_global_batch_is_augmented_in_its_own_way_at_each_step_and_seed():
    images = np.broadcast_to(BATCH[:1], BATCH.shape)
    results = [step_augmented(images, step=step, seed=seed) for step, seed in ((7, 0), (8, 0), (7, 1))]
    distinct = np.unique(np.concatenate(results).reshape(3 * len(BATCH), -1).round(5), axis=0)
    assert len(distinct) == 3 * len(BATCH)


def test_a_step_is_repeatable_and_another_step_differs():
    first = step_augmented(BATCH, step=7)
    np.testing.assert_array_equal(step_augmented(BATCH, step=7), first)
    assert (np.abs(step_augmented(BATCH, step=8) - first).max(axis=(1, 2, 3)) > 0.01).all()


def test_another_seed_differs():
    first = step_augmented(BATCH, step=7, num_devices=1)
    other = step_augmented(BATCH, step=7, num_devices=1, seed=1)
    assert (np.abs(other - first).max(axis=(1, 2, 3)) > 0.01).all()


def test_without_augmentation_a_step_only_scales_pixels():
    results = step_augmented(BATCH, step=7, config=AugmentConfig())
    np.testing.assert_allclose(results, BATCH / 255.0, rtol=1e-6)


# Crops, erasing and alternating flips.


def test_a_crop_without_anything_else_is_a_part_of_the_image():
    config = AugmentConfig(crop=40)
    image = random_image()[..., None]
    crops = np.asarray(
        jax.jit(jax.vmap(lambda key: augment(key, image, config)))(jax.random.split(jax.random.key(0), 300))
    )
    assert crops.shape == (300, 40, 40, 1)
    places = set()
    for crop in crops:
        found = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if np.array_equal(crop, image[top : top + 40, left : left + 40])
        ]
        assert len(found) == 1
        places |= set(found)
    # Of 81 places, 300 draws are expected to miss 81 (80 / 81)^300, about two.
    assert len(places) > 70


def test_a_crop_turns_and_zooms_about_its_own_centre():
    # A blob in the middle of every crop stays there.
    config = AugmentConfig(rotation=90.0, zoom=0.3, crop=47)
    image = blob(CENTRE, CENTRE).astype(np.float32)[..., None]
    keys = jax.random.split(jax.random.key(1), NUM_KEYS)
    crops = np.asarray(jax.jit(jax.vmap(lambda key: augment(key, image, config)))(keys))[..., 0]
    distances = np.abs(centre_of_mass(crops) - 23)
    # The crop's corner is at 0 or 1, so the blob is half a pixel from the crop's centre.
    assert distances.max() < 0.95


def test_a_crop_as_large_as_the_image_is_the_image():
    image = random_image()[..., None]
    np.testing.assert_array_equal(augment(jax.random.key(3), image, AugmentConfig(crop=48)), image)


def test_erasing_sets_a_rectangle_to_the_mean():
    config = AugmentConfig(erasing=0.5)
    image = random_image()[..., None]
    keys = jax.random.split(jax.random.key(0), 400)
    erased = np.asarray(jax.jit(jax.vmap(lambda key: augment(key, image, config)))(keys))
    areas = []
    for result in erased[..., 0]:
        rows, columns = np.nonzero(result != image[..., 0])
        if len(rows):
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            np.testing.assert_allclose(result[rows, columns], image.mean(), rtol=1e-5)
            areas.append(len(rows) / SIZE**2)
    assert 160 < len(areas) < 240
    assert min(areas) > 0.01
    assert 0.15 < max(areas) < 0.23
    assert np.mean(areas) == pytest.approx(0.11, abs=0.015)


def test_an_image_flips_in_every_other_epoch_whatever_its_place():
    index = np.arange(2000)
    first, second, third = (np.asarray(images_lib.alternating_flips(index, epoch, seed=0)) for epoch in range(3))
    np.testing.assert_array_equal(first, ~second)
    np.testing.assert_array_equal(first, third)
    assert 900 < first.sum() < 1100
    np.testing.assert_array_equal(images_lib.alternating_flips(index[::-1], 0, seed=0), first[::-1])
    assert (np.asarray(images_lib.alternating_flips(index, 0, seed=1)) != first).any()


def test_flips_that_are_given_are_made():
    flips = np.arange(16) % 3 == 0
    config = AugmentConfig(flip=0.5)
    mesh = Mesh(np.array(jax.devices()[:1]), (AXIS_NAME,), axis_types=(AxisType.Auto,))

    def augment_part(images):
        return augment_batch(images, seed=0, step=0, config=config, axis_name=AXIS_NAME, flips=flips)

    whole = PartitionSpec()
    mapped = jax.shard_map(augment_part, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    images = BATCH.astype(np.float32)
    expected = np.where(flips[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_array_equal(jax.jit(mapped)(images), expected)
