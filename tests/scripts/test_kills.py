"""A run that is killed six times ends as it would have without the kills."""

from scripts.reliability import kills


def test_six_kills_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device
    monkeypatch.setitem(kills.MOMENTS, "anywhere", (kills.is_running, 4.0))
    # With this seed every kill comes at a moment of another kind, the last one while reporting.
    killed = kills.inject(6, seed=1679, folder=tmp_path, epochs=3)
    assert sum(killed.values()) - killed["runs"] == 6
    assert len(killed) > 4  # at moments of several kinds
