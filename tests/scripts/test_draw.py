"""The sheet of augmented faces, for each config that is shipped."""

import numpy as np
import pytest
from PIL import Image

from fer_jax.recipe.images import AugmentConfig
from fer_jax.system import command_line
from scripts.draw import augmented


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(augmented, "FACES", 1)
    monkeypatch.setattr(augmented, "STEPS", 2)


@pytest.mark.parametrize("name", sorted(path.stem for path in command_line.CONFIGS.glob("*.py")))
def test_a_sheet_of_each_config(name, tmp_path):
    augmented.main([str(tmp_path / "sheet.png"), f"--config={name}"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (300, 200)  # columns: the original and two steps; rows: a face and the strong one
        assert np.asarray(sheet.convert("L")).std() > 10


@pytest.mark.parametrize(("crop", "before", "after"), [(40, 4, 4), (45, 1, 2), (None, 0, 0)])
def test_a_crop_is_in_the_middle_of_white(crop, before, after):
    images = np.full((2, 48, 48, 1), 51, np.uint8)
    rows = augmented.augmented(images, AugmentConfig(crop=crop), seed=0)
    expected = np.pad(np.full((48 - before - after,) * 2, 0.2), (before, after), constant_values=1.0)
    assert rows.shape == (2, 3, 48, 48)
    np.testing.assert_allclose(rows[:, 0], 0.2, rtol=1e-6)
    np.testing.assert_allclose(rows[:, 1:], np.broadcast_to(expected, (2, 2, 48, 48)), rtol=1e-6)


def test_a_config_that_is_not_there_is_said_in_a_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: --config=absent: there is no file absent[^\n]*$"):
        augmented.main([str(tmp_path / "sheet.png"), "--config=absent"])
