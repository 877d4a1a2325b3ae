"""Small datasets in the layouts that FER-2013 comes in."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fer_jax.data.dataset import IMAGE_SHAPE


def _csv_bytes(
    images: np.ndarray,
    labels: Sequence[int],
    usages: Sequence[str],
    header: str = "emotion,pixels,Usage",
    quote: str = "",
    line_end: str = "\n",
) -> bytes:
    """Returns a csv of `images`, uint8 [N, 48, 48, 1], with the columns of `header` in their order."""
    lines = [header]
    for image, label, usage in zip(images, labels, usages, strict=True):
        values = {"emotion": str(label), "pixels": " ".join(map(str, image.ravel().tolist())), "usage": usage}
        lines.append(",".join(quote + values[name.strip().lower()] + quote for name in header.split(",")))
    return "".join(line + line_end for line in lines).encode()


@pytest.fixture(scope="session")
def csv_bytes() -> Callable[..., bytes]:
    return _csv_bytes


@pytest.fixture(scope="session")
def random_images() -> Callable[..., np.ndarray]:
    """Returns a function (number, seed) -> uint8 [number, 48, 48, 1], with values of one, two and three digits."""

    def make(number: int, seed: int = 0) -> np.ndarray:
        generator = np.random.default_rng(seed)
        highest = generator.choice([9, 99, 255], size=(number, *IMAGE_SHAPE))
        return generator.integers(0, highest, endpoint=True).astype(np.uint8)

    return make
