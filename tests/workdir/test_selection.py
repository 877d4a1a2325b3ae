import pytest

from fer_jax.errors import UserError
from fer_jax.workdir import selection
from fer_jax.workdir.paths import Workdir

POSSIBLE = ["whole", "ten_crops"]


def test_the_view_that_was_chosen_is_read_back(tmp_path):
    workdir = Workdir(tmp_path)
    assert selection.read_view(workdir, POSSIBLE) is None
    assert not selection.is_of(workdir, 20)
    selection.write_view(workdir, "ten_crops", "accuracy", {"whole": 0.5, "ten_crops": 0.6}, step=20)
    assert selection.read_view(workdir, POSSIBLE) == "ten_crops"
    assert selection.is_of(workdir, 20)
    assert not selection.is_of(workdir, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["selection.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"view": "half"}', '{"view": "auto"}', '{"view": ["whole"]}'])
def test_a_damaged_file_is_named(text, tmp_path):
    workdir = Workdir(tmp_path)
    workdir.selection.write_text(text)
    assert not selection.is_of(workdir, 20)
    with pytest.raises(UserError, match=r"selection\.json can't be read"):
        selection.read_view(workdir, POSSIBLE)


def test_a_view_that_the_network_can_not_be_shown_is_no_view(tmp_path):
    workdir = Workdir(tmp_path)
    selection.write_view(workdir, "ten_crops", "accuracy", {"whole": 0.5, "ten_crops": 0.6}, step=20)
    with pytest.raises(UserError, match=r"selection\.json can't be read \(view 'ten_crops' is none of whole\)"):
        selection.read_view(workdir, ["whole"])
