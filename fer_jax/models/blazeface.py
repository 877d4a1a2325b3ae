"""BlazeFace, full range: the face detector of Google's MediaPipe, as a Flax (linen) module. Pure.

Bazarevsky et al. 2019, https://arxiv.org/abs/1907.05047, in the version of MediaPipe's face_detection_full_range: an
encoder of 15 double blocks, a decoder of three upsamplings with skips, one anchor in each of 48 x 48 cells.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

IMAGE_SIZE = 192
NUM_CELLS = 48  # along each side
# The keypoints whose coordinates, two each, follow the box's values. Right and left are the person's own.
KEYPOINTS = ("right_eye", "left_eye", "nose", "mouth", "right_ear", "left_ear")

# (features, stride) of the encoder's blocks, at 96, 48, 24, 12 and 6 cells a side.
ENCODER = (
    *((32, 1), (32, 1)),
    *((48, 2), (48, 1), (64, 1)),
    *((96, 2), (128, 1), (128, 1)),
    *((144, 2), (192, 1), (256, 1)),
    *((384, 2), (384, 1), (384, 1), (384, 1)),
)
# (features, number of blocks) of the decoder's upsamplings, to 12, 24 and 48 cells a side.
DECODER = ((96, 2), (64, 2), (48, 1))
# The default on GPUs and TPUs keeps only 10 and 8 bits, which moves the boxes, and gains little in so small a network.
_PRECISION = lax.Precision.HIGHEST
# The weights always come from a file. Flax traces a parameter's initializer at each call to compare the shapes; with
# random initializers, this was most of what a call traced.
_ZEROS = nn.initializers.zeros_init()
_Dense = functools.partial(nn.Dense, precision=_PRECISION, kernel_init=_ZEROS)


class Depthwise(nn.Module):
    """A 3x3 depthwise convolution: [batch, height, width, channels] -> the same with sides divided by the stride."""

    stride: int = 1

    @nn.compact
    def __call__(self, x):
        _, height, width, channels = x.shape
        kernel = self.param("kernel", _ZEROS, (3, 3, channels))
        bias = self.param("bias", _ZEROS, (channels,))
        # Padding as in TensorFlow's "same": at stride 2 an even size is padded at its end only.
        before = 1 if self.stride == 1 else 0
        x = jnp.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
        # XLA:CPU fuses these nine shifted products. With grouped convolutions the whole network takes 7 times as long
        # there (88 ms instead of 12 on one core of a Zen 3).
        shifted = [
            x[:, i : i + height : self.stride, j : j + width : self.stride] * kernel[i, j]
            for i in range(3)
            for j in range(3)
        ]
        return sum(shifted, bias)


class Block(nn.Module):
    """A residual block of two separable convolutions: [batch, height, width, in] -> [batch, height / stride, ..., out].

    The shortcut is max-pooled if the stride is 2, and padded with zeros for the channels that the block adds.
    """

    features: int
    hidden: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        y = Depthwise(self.stride, name="depthwise_0")(x)
        y = nn.relu(_Dense(self.hidden, name="pointwise_0")(y))
        y = Depthwise(name="depthwise_1")(y)
        y = _Dense(self.features, name="pointwise_1")(y)
        if self.stride == 2:
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1]))))


class BlazeFace(nn.Module):
    """Maps pictures to what is in each cell; see `Cells` and `detect`."""

    @nn.compact
    def __call__(self, images):
        """Returns the raw values of each cell, float32 [batch, 48, 48, 16] and logits [batch, 48, 48].

        images: float32 [batch, 192, 192, 3], in [-1, 1], RGB.
        """
        # As in Depthwise: the even size is padded at its end.
        stem = nn.Conv(32, (3, 3), (2, 2), ((0, 1), (0, 1)), precision=_PRECISION, kernel_init=_ZEROS, name="stem")
        x = nn.relu(stem(images))
        skips = []
        for number, (features, stride) in enumerate(ENCODER):
            if stride == 2:
                skips.append(x)
            x = Block(features, features // 4, stride, name=f"encoder_{number}")(x)
        for number, (features, num_blocks) in enumerate(DECODER):
            x = nn.relu(_Dense(features, name=f"up_{number}")(x))
            skip = nn.relu(_Dense(features, name=f"skip_{number}")(skips.pop()))
            x = skip + jax.image.resize(x, skip.shape, "bilinear")
            for block in range(num_blocks):
                x = Block(features, features // 2, name=f"decoder_{number}_{block}")(x)
        logits = _Dense(1, name="score")(x)
        return _Dense(16, name="box")(x), logits[..., 0]


class Cells(NamedTuple):
    """The detector's output for each of the 2,304 cells; lengths are fractions of the picture's side.

    boxes: (left, top, width, height), [batch, cells, 4]. keypoints: (x, y) of KEYPOINTS, [batch, cells, 6, 2].
    scores: in [0, 1], [batch, cells].
    """

    boxes: jax.Array
    keypoints: jax.Array
    scores: jax.Array


def detect(variables, images) -> Cells:
    """Returns the detector's output for images, uint8 [batch, 192, 192, 3], RGB."""
    values, logits = BlazeFace().apply(variables, images.astype(jnp.float32) / 127.5 - 1)
    batch = len(images)
    # Positions are offsets from the cell's centre, and all lengths are in pixels of the picture.
    middles = (jnp.arange(NUM_CELLS) + 0.5) / NUM_CELLS
    centres = jnp.stack(jnp.meshgrid(middles, middles), axis=-1).reshape(-1, 1, 2)
    pairs = values.reshape(batch, NUM_CELLS**2, 8, 2) / IMAGE_SIZE
    centre, sides = pairs[:, :, :1] + centres, pairs[:, :, 1:2]
    boxes = jnp.concatenate([centre - sides / 2, sides], axis=-1).reshape(batch, -1, 4)
    return Cells(boxes, pairs[:, :, 2:] + centres, nn.sigmoid(logits).reshape(batch, -1))
