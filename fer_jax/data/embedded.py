"""The embedded dataset: rendered faces that stand in for FER-2013 if its files aren't available.

A face's expression follows the facial action units (AU) of its emotion as EMFACS lists them (Friesen & Ekman, 1983);
identity, pose and light are random and say nothing about the label. Pixels are computed with +, -, *, /, sqrt,
comparison and rounding only, which IEEE 754 defines to the bit: one seed gives the same images on every machine. With
exp, sin or a reordered sum it would not.

Lengths in pixels refer to an image of 48 x 48. Arrays of pixels are float32 [batch, size, size] and parameters
[batch, 1, 1], so that they broadcast.
"""

import types
from collections.abc import Mapping, Sequence

import numpy as np

from fer_jax.data.dataset import CLASS_NAMES, SPLITS, Dataset, Split
from fer_jax.data.painting import paint_face

SIZES = types.MappingProxyType({"train": 1400, "validation": 350, "test": 350})

# Small enough for the processor's cache. Another size gives other faces, since random numbers are drawn by batch.
BATCH_SIZE = 50

# Intensity of each emotion's action units and of those that tend to accompany them; an unlisted unit is at rest.
# Brows: 1 inner ends raised, 2 outer ends raised, 4 lowered and knit. Eyes: 5 upper lids raised, 6 cheeks raised,
# 7 lids tightened, 43 half closed. Nose: 9 wrinkled. Mouth: 10 upper lip raised, 12 corners up, 15 corners down,
# 16 lower lip down, 20 stretched, 23 tightened, 25 parted, 26 jaw dropped.
ACTION_UNITS = {
    "angry": {4: 1.0, 5: 0.3, 7: 1.0, 23: 1.0},
    "disgust": {4: 0.5, 7: 0.6, 9: 1.0, 10: 1.0, 15: 0.5, 16: 0.8},
    "fear": {1: 1.0, 2: 0.6, 4: 0.5, 5: 1.0, 7: 0.3, 20: 1.0, 26: 0.4},
    "happy": {6: 1.0, 7: 0.3, 12: 1.0, 25: 1.0},
    "sad": {1: 1.0, 4: 0.4, 15: 1.0, 43: 0.4},
    "surprise": {1: 1.0, 2: 1.0, 5: 1.0, 26: 1.0},
    "neutral": {},
}
UNITS = sorted({unit for units in ACTION_UNITS.values() for unit in units})

# Factors that are independent of the label, each uniform between its two bounds.
NUISANCES = {
    # pose
    "shift_x": (-3.5, 3.5),  # pixels
    "shift_y": (-3.5, 3.5),
    "scale": (20.0, 24.5),  # pixels per unit
    "roll": (-0.13, 0.13),  # tan of half the angle: 15 degrees either way
    "yaw": (-0.16, 0.16),
    "pitch": (-0.08, 0.08),
    # identity
    "face_width": (0.70, 0.86),
    "face_height": (0.98, 1.12),
    "jaw": (0.05, 0.25),
    "skin": (0.50, 0.95),
    "hair": (0.05, 0.60),
    "hair_kind": (0.0, 1.0),
    "hairline": (-0.95, -0.75),
    "parting": (-0.20, 0.20),
    "fringe": (-0.1, 0.12),
    "hair_volume": (0.05, 0.22),
    "eye_x": (0.33, 0.41),
    "eye_y": (-0.24, -0.16),
    "eye_width": (0.19, 0.23),
    "eye_height": (0.09, 0.11),
    "iris": (0.05, 0.30),
    "gaze": (-0.04, 0.04),
    "brow_y": (-0.50, -0.44),
    "brow_thickness": (0.035, 0.065),
    "brow_darkness": (0.5, 0.8),
    "nose_y": (0.16, 0.24),
    "nose_width": (0.09, 0.14),
    "mouth_y": (0.52, 0.60),
    "mouth_width": (0.30, 0.36),
    "lip": (0.04, 0.06),
    "lip_tone": (0.65, 0.85),
    "glasses": (0.0, 1.0),
    "beard": (0.0, 1.0),
    # light, background and camera
    "light_x": (-0.40, 0.40),
    "light_y": (-0.25, 0.25),
    "background": (0.05, 0.95),
    "background_x": (-0.25, 0.25),
    "background_y": (-0.25, 0.25),
    "clothes": (0.05, 0.95),
    "occluder": (0.0, 1.0),
    "occluder_x": (-0.9, 0.9),
    "occluder_y": (-0.9, 0.9),
    "occluder_size": (0.10, 0.20),
    "occluder_tone": (0.05, 0.9),
    "contrast": (0.75, 1.05),
    "brightness": (-0.12, 0.12),
    "blur": (0.0, 0.16),
    "noise": (0.005, 0.02),
}


def make(
    seed: int = 0,
    sizes: Mapping[str, int] = SIZES,
    *,
    image_size: int = 48,
    class_names: Sequence[str] = CLASS_NAMES,
) -> Dataset:
    """Returns a dataset of rendered faces with balanced classes in every split; equal arguments give equal datasets.

    sizes: the number of examples by split. image_size: height and width. class_names: some of CLASS_NAMES, in the order
    of the labels. A split's images and labels depend on the seed and on its own size, not on the sizes of the other
    splits.
    """
    splits, first_row = {}, 0
    for index, name in enumerate(SPLITS):
        size = sizes.get(name, 0)
        if size:
            # Each split has its own generator, so that its size doesn't change the other splits.
            rng = np.random.default_rng([seed, index])
            labels = rng.permutation(np.arange(size, dtype=np.int32) % len(class_names))
            rows = np.arange(first_row, first_row + size, dtype=np.int64)
            splits[name] = Split(draw(labels, rng, image_size=image_size, class_names=class_names), labels, rows)
            first_row += size
    note = "drawn, not photographed; for FER-2013 put fer2013.csv into data/ or set --config.dataset.path"
    return Dataset("embedded faces", splits, note, tuple(class_names), (image_size, image_size, 1))


def draw(
    labels: np.ndarray, rng: np.random.Generator, *, image_size: int = 48, class_names: Sequence[str] = CLASS_NAMES
) -> np.ndarray:
    """Returns a face for each of labels (int [N], indices into class_names) as uint8 [N, size, size, 1]."""
    images = np.empty((len(labels), image_size, image_size, 1), np.uint8)
    # At 48 x 48 pixels the zoom is exactly 1, so each length stays the same to the bit.
    zoom = np.float32(image_size / 48)
    for start in range(0, len(labels), BATCH_SIZE):
        batch = labels[start : start + BATCH_SIZE]
        face, units = draw_nuisances(len(batch), rng), draw_action_units(batch, rng, class_names)
        face.shift_x, face.shift_y, face.scale = face.shift_x * zoom, face.shift_y * zoom, face.scale * zoom
        grey = take_photo(paint_face(face, units, image_size), face, rng)
        images[start : start + BATCH_SIZE, ..., 0] = np.rint(255 * grey)
    return images


def draw_nuisances(size: int, rng: np.random.Generator) -> types.SimpleNamespace:
    """Returns a value for each name in NUISANCES, float32 [size, 1, 1]."""
    low, high = np.array(list(NUISANCES.values())).T
    values = (low + (high - low) * rng.random((size, len(NUISANCES)))).astype(np.float32)
    return types.SimpleNamespace(**{name: values[:, [i], None] for i, name in enumerate(NUISANCES)})


def draw_action_units(
    labels: np.ndarray, rng: np.random.Generator, class_names: Sequence[str] = CLASS_NAMES
) -> dict[int, np.ndarray]:
    """Returns the intensity of every action unit, float32 [N, 1, 1], for labels, int [N].

    The intensity of a whole expression is between 85 % and full, and each of its units varies around that by up to 10 %
    either way; a unit at rest may move a little too.
    """
    table = np.array([[ACTION_UNITS[name].get(unit, 0.0) for unit in UNITS] for name in class_names])
    strength = 0.85 + 0.15 * rng.random((len(labels), 1))
    jitter = 0.90 + 0.20 * rng.random((len(labels), len(UNITS)))
    rest = 0.06 * rng.random((len(labels), len(UNITS)))
    values = np.maximum(table[labels] * strength * jitter, rest).astype(np.float32)
    return {unit: values[:, [i], None] for i, unit in enumerate(UNITS)}


def take_photo(grey: np.ndarray, face: types.SimpleNamespace, rng: np.random.Generator) -> np.ndarray:
    """Returns `grey` with contrast, blur and noise applied, float32 [batch, size, size] in [0, 1]."""
    grey = 0.5 + face.contrast * (grey - 0.5) + face.brightness
    for _ in range(2):  # once along the columns, once along the rows
        padded = np.pad(grey, ((0, 0), (1, 1), (0, 0)), mode="edge")
        grey = grey + face.blur * (padded[:, 2:] - 2 * grey + padded[:, :-2])
        grey = grey.swapaxes(1, 2)
    # The difference of two uniform numbers is close to normal and needs no logarithm, whose rounding varies by machine.
    noise = rng.random(grey.shape, np.float32) - rng.random(grey.shape, np.float32)
    return np.clip(grey + 6**0.5 * face.noise * noise, 0, 1)  # the noise has a standard deviation of 1 / sqrt(6)
