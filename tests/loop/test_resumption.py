"""The workdir of several processes."""

import pytest

from fer_jax.errors import UserError
from fer_jax.loop.resumption import require_visible
from fer_jax.workdir.paths import Workdir


def test_a_workdir_that_a_process_does_not_see_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"process 0 doesn't see {tmp_path}/lock, which process 0 has made; all proc"):
        require_visible(Workdir(tmp_path), seconds=0)
    (tmp_path / "lock").touch()
    require_visible(Workdir(tmp_path), seconds=0)
    # A bucket has no lock.
    require_visible(Workdir("gs://faces/run"), seconds=0)
