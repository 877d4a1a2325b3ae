"""A run that is killed ten times is the run that it would have been."""

from scripts.reliability import kills


def test_ten_kills_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device
    killed = kills.inject(10, seed=0, folder=tmp_path, epochs=3)
    assert sum(killed.values()) - killed["runs"] == 10
    assert len(killed) > 4  # at moments of several kinds
