"""The benchmark of face detectors: its arithmetic, and its output without photographs."""

import importlib.util

import numpy as np

from scripts.benchmark import detect

KNOWN = [(0, 0, 10, 10), (50, 50, 20, 20)]


def test_a_face_is_found_once_and_all_else_is_false():
    assert detect.count([], KNOWN) == (0, 0)
    assert detect.count(KNOWN, KNOWN) == (2, 0)
    assert detect.count([(1, 1, 10, 10), (0, 0, 10, 10)], KNOWN) == (1, 1)
    assert detect.count([(5, 5, 10, 10)], KNOWN) == (0, 1)
    assert detect.count([(0, 0, 10, 10)], []) == (0, 1)


def test_results_are_summed_over_the_photographs():
    picture = np.zeros((80, 80, 3), np.uint8)
    result = detect.measure(lambda pixels: KNOWN[:1], [(picture, KNOWN), (picture, [])])
    assert (result["found"], result["false"]) == (1, 1)
    assert result["milliseconds"] >= 0


def test_a_package_that_is_not_there_is_named(capsys):
    installed = [folder for folder in detect.KNOWN if importlib.util.find_spec(folder.split("/")[0])]
    photographs, missing = detect.load()
    assert len(photographs) == sum(len(detect.KNOWN[folder]) for folder in installed)
    assert len(missing) + len(installed) == len(detect.KNOWN)
    if not photographs:
        detect.main([])
        assert "skimage is left out: it is not installed" in capsys.readouterr().out
