"""Broken files are refused by name or read as they are."""

import random
import tempfile
import time

import pytest

from fer_jax.data import files
from fer_jax.errors import UserError
from scripts.reliability import fuzz


def test_some_hundred_broken_files_and_folders(tmp_path):
    results = fuzz.fuzz(300, 100, seed=1, folder=tmp_path)
    assert sum(results.values()) == 400
    assert min(results.values()) > 5  # both outcomes occur, for both layouts


def test_an_input_that_takes_too_long_is_named_and_kept(tmp_path, monkeypatch):
    def read_forever(path):
        try:
            time.sleep(60)
        except Exception as error:
            raise UserError(f"{path}: {error}") from error

    monkeypatch.setattr(fuzz, "SECONDS", 1)
    monkeypatch.setattr(files, "read_published", read_forever)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(AssertionError, match=r"input 0 of check_csv, kept as .*f\.csv: .*more than 1 s"):
        fuzz.fuzz(1, 0, seed=1, folder=tmp_path)
    (kept,) = tmp_path.glob("fuzz-*/f.csv")
    assert kept.stat().st_size > 0


def test_the_slow_reading_reads_what_the_sound_file_says():
    content = fuzz.sound_csv(random.Random(0))
    examples = fuzz.read_slowly(content)
    assert {split: len(rows) for split, rows in examples.items()} == {"train": 2, "validation": 1, "test": 1}
    assert all(len(pixels) == 48 * 48 for rows in examples.values() for _, pixels in rows)
