"""The audit, run as a command."""

import json

from tests.support import tiny_run
from tests.support.commands import main, run


def test_the_audit_needs_no_config_prints_a_table_and_writes_its_files(csv_file, tmp_path):
    folder = tmp_path / "audit"
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    status, out, err = run(main("--mode=audit", f"--data={csv_file}", f"--workdir={folder}"), **cache)
    assert status == 0, err
    assert "Data set: fer2013.csv (40 train, 21 validation, 17 test; fingerprint " in out
    assert "Equal images: 0 in 0 groups" in out
    assert f"{folder}/audit.json" in out
    assert {path.name for path in folder.iterdir()} == {"audit.json", "audit.png"}
    summary = json.loads((folder / "audit.json").read_text())
    assert summary["class_counts"]["test"] == [3, 3, 3, 2, 2, 2, 2]
    assert summary["also_in_train"]["test"] == {"equal": 0, "near": 0, "share": 0.0}


def test_mistakes_are_one_line(csv_file, tmp_path):
    for options, expected in (
        (["--data=missing.csv"], "missing.csv: there is no such file or folder"),
        (
            [
                "--config=configs/resnet50.py",
                f"--data={csv_file}",
                f"--config.dataset.ferplus={tiny_run.write_votes(tmp_path / 'new.csv')}",
            ],
            "new.csv: row 42: Usage is 'PublicTest'; in FER-2013's order this is an image of the train split",
        ),
    ):
        status, out, err = run(main("--mode=audit", f"--workdir={tmp_path / 'audit'}", *options))
        assert status == 2, out
        assert expected in err
        assert "Traceback" not in err
    assert not (tmp_path / "audit").exists()
