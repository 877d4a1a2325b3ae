"""The folder of a run, and writing its files."""

import pytest
from etils import epath

from fer_jax.errors import StorageError, UserError
from fer_jax.workdir.paths import Workdir, write_whole


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


@pytest.mark.parametrize("path", ["s3://bucket/run", "file:///tmp/run"])
def test_another_address_than_a_bucket_of_google_s_is_refused(path):
    with pytest.raises(UserError, match=rf"the workdir is {path}; it must be a local folder or gs://BUCKET/FOLDER"):
        Workdir(path)
