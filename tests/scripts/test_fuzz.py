"""Broken files are refused by name or read as they are."""

import random

from scripts.reliability import fuzz


def test_some_hundred_broken_files_and_folders(tmp_path):
    results = fuzz.fuzz(300, 100, seed=1, folder=tmp_path)
    assert sum(results.values()) == 400
    assert min(results.values()) > 5  # both kinds of outcome are seen, for both layouts


def test_the_slow_reading_reads_what_the_sound_file_says():
    content = fuzz.sound_csv(random.Random(0))
    examples = fuzz.read_slowly(content)
    assert {split: len(rows) for split, rows in examples.items()} == {"train": 2, "validation": 1, "test": 1}
    assert all(len(pixels) == 48 * 48 for rows in examples.values() for _, pixels in rows)
