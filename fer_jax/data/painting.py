"""Paints the faces of the embedded dataset from the outlines of their parts.

Coordinates: x points right and y down, in units of some 22 pixels, from an origin between eyes and mouth. Arrays of
pixels are float32 [batch, size, size] and parameters [batch, 1, 1], so that they broadcast. `face` has the values of
`embedded.NUISANCES`, `au` the intensity of each action unit.
"""

import types

import numpy as np


def ellipse(x, y, width, height, scale):
    """Returns how much of each pixel (0 to 1) an ellipse with these half-axes covers; scale: pixels per unit."""
    radius = np.sqrt(np.square(x / width) + np.square(y / height))
    return np.clip((1 - radius) * np.minimum(width * scale, height * scale) + 0.5, 0, 1)


def lens(x, y, width, above, below, scale, bend=0.0, slope=0.0, square=0.0):
    """Returns how much of each pixel (0 to 1) lies between two curves that meet at x = -width and x = width.

    The curves are `above` and `below` away from a middle line, which bends down by `bend` at both ends and slopes down
    by `slope` at the right one. They are parabolas, which get flatter in the middle as `square` approaches 1.
    """
    position = x / width
    squared = np.square(position)
    profile = 1 - squared * (1 - square + square * squared)
    y = y - slope * position - bend * squared
    return np.clip(np.minimum(y + above * profile, below * profile - y) * scale + 0.5, 0, 1)


def paint(grey, coverage, tone):
    """Returns `grey` blended with `tone`; coverage, 0 to 1, is the share of `tone`."""
    return grey + coverage * (tone - grey)


def paint_face(face: types.SimpleNamespace, au: dict[int, np.ndarray], image_size: int = 48) -> np.ndarray:
    """Returns the scene as reflected light, float32 [batch, size, size], nominally in [0, 1]."""
    rows, columns = np.mgrid[:image_size, :image_size].astype(np.float32) - np.float32((image_size - 1) / 2)
    columns, rows = columns - face.shift_x, rows - face.shift_y
    # The rotation uses the tangent of half the angle, since sin and cos differ between machines in the last bit.
    length = 1 + np.square(face.roll)
    cosine, sine = (2 - length) / length, 2 * face.roll / length
    x = (cosine * columns + sine * rows) / face.scale
    y = (cosine * rows - sine * columns) / face.scale
    scale = face.scale

    # Painted from the back to the front: each layer covers the ones before it.
    grey = face.background + face.background_x * x + face.background_y * y
    has_hair, has_long_hair = face.hair_kind > 0.12, face.hair_kind > 0.6
    grey = paint(grey, has_long_hair * ellipse(x, y + 0.1, face.face_width + 0.2, 1.25, scale), face.hair)
    grey = paint(grey, ellipse(x, y - 1.75, 1.3, 0.75, scale), face.clothes)
    grey = paint(grey, ellipse(x, y - 0.9, 0.38, 0.6, scale), face.skin * 0.7)
    grey = paint(grey, ellipse(np.abs(x) - face.face_width, y, 0.1, 0.2, scale), face.skin * 0.8)

    # The head: a dropped jaw makes it longer, and it narrows towards the chin.
    head_height = face.face_height + 0.12 * au[26] * (y > 0)
    head_width = face.face_width * (1 - face.jaw * np.square(np.maximum(y, 0)))
    depth = np.clip(1 - np.square(x / head_width) - np.square(y / head_height), 0, 1)
    light = (1 + face.light_x * x + face.light_y * y) * (0.75 + 0.3 * depth)
    grey = paint(grey, ellipse(x, y, head_width, head_height, scale), face.skin * light)

    # Turning the head moves the parts nearest to the camera most.
    turned_x, turned_y = x + face.yaw * depth, y + face.pitch * depth
    grey = paint_upper_face(grey, turned_x, turned_y, face, au)
    grey = paint_lower_face(grey, turned_x, turned_y, face, au)

    strand = 4 * x - np.floor(4 * x)
    hairline = face.hairline + 0.6 * np.square(x - face.parting) + np.maximum(face.fringe, 0) * strand
    volume = ellipse(x, y + 0.15, face.face_width + face.hair_volume, face.face_height + 0.05, scale)
    above_hairline = np.clip((hairline - y) * scale * 0.7 + 0.5, 0, 1)
    grey = paint(grey, has_hair * volume * above_hairline, face.hair * (0.7 + 0.5 * depth * light + 0.2 * strand))

    from_eye_x, from_eye_y = np.abs(turned_x) - face.eye_x, turned_y - face.eye_y
    rim = ellipse(from_eye_x, from_eye_y, face.eye_width + 0.1, 0.22, scale)
    rim -= ellipse(from_eye_x, from_eye_y, face.eye_width + 0.055, 0.175, scale)
    grey = paint(grey, 0.6 * rim * (face.glasses > 0.85), 0.1)
    patch = ellipse(x - face.occluder_x, y - face.occluder_y, face.occluder_size, face.occluder_size * 1.4, scale)
    return paint(grey, (face.occluder > 0.85) * patch, face.occluder_tone)


def paint_upper_face(grey, x, y, face, au):
    """Adds brows, eyes and the lines around them; mirroring x at the nose draws both sides at once."""
    scale, dark, mirrored = face.scale, face.skin * 0.35, np.abs(x)
    from_eye_x, from_eye_y = mirrored - face.eye_x, y - face.eye_y
    grey = paint(grey, 0.35 * ellipse(from_eye_x, from_eye_y + 0.04, 0.28, 0.2, scale * 0.25), dark)  # the socket

    upper = face.eye_height * (1 + 0.75 * au[5] - 0.25 * au[7] - 0.2 * au[9] - 0.6 * au[43])
    lower = face.eye_height * (0.8 + 0.3 * au[5] - 0.6 * au[6] - 0.5 * au[7] - 0.4 * au[9])
    # A raised cheek bends the eye into an arc; brows that rise on the inside pull its outer corner down.
    bend, slope = 0.05 * au[6], 0.05 * au[1] * (1 - au[2]) - 0.04 * au[4] * (1 - au[1])
    lashes = lens(from_eye_x, from_eye_y, face.eye_width + 0.03, upper + 0.05, lower + 0.02, scale, bend, slope)
    eye = lens(from_eye_x, from_eye_y, face.eye_width, upper, lower, scale, bend, slope)
    iris = ellipse(x - np.sign(x) * face.eye_x - face.gaze, from_eye_y, 0.085, 0.085, scale)
    grey = paint(grey, 0.85 * lashes, dark * 0.6)
    grey = paint(grey, eye, 0.55 + 0.45 * face.skin)
    grey = paint(grey, eye * iris, face.iris * face.skin)
    pouch = lens(from_eye_x, from_eye_y - 0.15, 0.2, 0.0, 0.05, scale, bend=-0.06)
    grey = paint(grey, 0.6 * au[6] * pouch, dark)

    # Units 1 and 4 together knit the brows and lift their inner ends; 4 alone lowers the inner ends.
    frown = np.maximum(au[4] - au[1], 0)
    inner = face.brow_y - 0.17 * au[1] + 0.22 * frown + 0.06 * au[9]
    outer = face.brow_y - 0.15 * au[2] - 0.04 * frown + 0.09 * np.maximum(au[1] - au[2], 0)
    arch = 0.05 + 0.08 * au[2] * (1 - au[4]) - 0.03 * au[4]
    brow_x, brow_y = from_eye_x + 0.05 * au[4], y - (inner + outer - arch) / 2
    thick, slope = face.brow_thickness, (outer - inner) / 2
    brow = lens(brow_x, brow_y, 0.26, thick, thick, scale, arch, slope, square=0.7)
    grey = paint(grey, brow, face.skin * (1 - face.brow_darkness))

    knit = np.maximum(au[4] - 0.5 * au[1], 0)
    furrow = lens(y - face.brow_y - 0.09, mirrored - 0.07, 0.17, 0.045, 0.045, scale)
    grey = paint(grey, 0.8 * knit * furrow, dark)
    for height in (0.66, 0.76):  # wrinkles across the forehead
        grey = paint(grey, 0.6 * au[1] * au[2] * lens(x, y + height, 0.4, 0.02, 0.02, scale, bend=0.03), dark)
    return grey


def paint_lower_face(grey, x, y, face, au):
    """Adds nose, cheeks, mouth and the lines around them; mirroring x at the nose draws both sides at once."""
    scale, dark, mirrored = face.scale, face.skin * 0.35, np.abs(x)
    from_nose = y - face.nose_y + 0.05 * au[9]
    shaded_side = lens(from_nose + 0.2, x - 0.08 * np.sign(face.light_x), 0.3, 0.035, 0.035, scale * 0.6)
    grey = paint(grey, 0.35 * shaded_side, dark)
    grey = paint(grey, 0.5 * lens(x, from_nose, face.nose_width * 1.5, 0.0, 0.06, scale, bend=-0.05), dark)
    nostrils = ellipse(mirrored - face.nose_width * 0.65, from_nose - 0.01, 0.045, 0.035, scale)
    grey = paint(grey, 0.9 * nostrils, dark * 0.6)
    for height in (0.16, 0.26, 0.36):  # wrinkles across the bridge
        grey = paint(grey, 0.75 * au[9] * lens(x, from_nose + height, 0.17, 0.025, 0.025, scale, bend=0.05), dark)
    # The nasolabial fold, from the wing of the nose to the corner of the mouth.
    fold_x = mirrored - face.nose_width - 0.20 - 0.06 * au[12]
    fold = lens(from_nose - 0.18, fold_x, 0.22, 0.025, 0.025, scale, bend=-0.04, slope=0.10 + 0.05 * au[12])
    grey = paint(grey, np.maximum(np.maximum(0.9 * au[9], 0.35 * au[12]), 0.12) * fold, dark)

    jaw = np.clip((y - face.mouth_y + 0.3 - 0.25 * mirrored) * 6, 0, 1) * np.clip((mirrored + y - 0.55) * 6, 0, 1)
    jaw = jaw * ellipse(x, y, face.face_width * 0.95, face.face_height, scale)
    grey = paint(grey, 0.4 * jaw * (face.beard > 0.85), face.hair)

    width = 1 + 0.40 * au[12] + 0.35 * au[20] - 0.42 * au[23]
    width = width * face.mouth_width * (1 - 0.28 * au[26] * (1 - au[20]))
    above = 0.01 + 0.11 * au[10] + 0.02 * au[20] + 0.03 * au[23] + 0.11 * au[26]
    below = 0.01 + 0.07 * au[16] + 0.03 * au[20] + 0.03 * au[23] + 0.19 * au[25] + 0.27 * au[26]
    square = np.minimum(0.6 * au[10] + 0.9 * au[20] + 0.5 * au[26], 1)
    bend = -0.14 * au[12] + 0.20 * au[15] + 0.04 * au[20]
    lip = face.lip * (1 - 0.75 * au[23])
    from_mouth = y - face.mouth_y + bend / 2
    lips = lens(x, from_mouth, width + 0.03, above + lip, below + 1.4 * lip, scale, bend, square=square)
    mouth = lens(x, from_mouth, width, above, below, scale, bend, square=square)
    upper_teeth = lens(x, from_mouth, width * 0.92, above, 0.09 - 0.02 * au[10], scale, bend, square=square)
    shown = np.minimum(0.9 * au[10] + au[20] + au[25], 1)
    grey = paint(grey, lips, face.skin * face.lip_tone * 0.85)
    grey = paint(grey, mouth, dark * 0.35)
    return paint(grey, mouth * upper_teeth * shown, 0.5 + 0.5 * face.skin)
