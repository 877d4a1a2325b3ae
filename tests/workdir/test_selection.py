import pytest

from fer_jax.errors import UserError
from fer_jax.workdir import selection
from fer_jax.workdir.paths import Workdir


def test_the_view_that_was_chosen_is_read_back(tmp_path):
    workdir = Workdir(tmp_path)
    assert selection.read_view(workdir) is None
    selection.write_view(workdir, "ten_crops", "accuracy", {"whole": 0.5, "ten_crops": 0.6})
    assert selection.read_view(workdir) == "ten_crops"
    assert [path.name for path in tmp_path.iterdir()] == ["selection.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"view": "half"}'])
def test_a_damaged_file_is_named(text, tmp_path):
    workdir = Workdir(tmp_path)
    workdir.selection.write_text(text)
    with pytest.raises(UserError, match=r"selection\.json can't be read"):
        selection.read_view(workdir)
