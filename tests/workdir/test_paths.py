"""Writing the files of a run."""

import pytest
from etils import epath

from fer_jax.errors import StorageError
from fer_jax.workdir.paths import write_whole


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = epath.Path(tmp_path / "config.json")
    write_whole(path, "old")
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_if_the_disk_is_full_the_old_file_stays(tmp_path):
    path = epath.Path(tmp_path / "config.json")
    write_whole(path, "old")
    (tmp_path / "config.partial").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"config\.partial: .*No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
