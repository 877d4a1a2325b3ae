"""The table that an audit prints, and the files that it writes."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from fer_jax.data.audit import audit, summarize
from fer_jax.data.dataset import CLASS_NAMES, Dataset, Split
from fer_jax.workdir.audit_report import table, write


def findings_of(class_names=CLASS_NAMES, non_faces=True):
    """Returns the audit of 60 images of noise in train, and in test two of them, one relabelled, and a constant one."""
    images = np.random.default_rng(0).integers(0, 256, (63, 48, 48, 1), dtype=np.uint8)
    labels = (np.arange(63) % len(class_names)).astype(np.int32)
    images[60], images[61], images[62] = images[0], images[1], 200
    labels[60], labels[61] = labels[0], labels[2]
    splits = {
        "train": Split(images[:60], labels[:60], np.arange(60)),
        "test": Split(images[60:], labels[60:], np.arange(60, 63)),
    }
    is_non_face = np.arange(63) % 30 == 2
    return audit(Dataset("faces", splits, class_names=class_names), is_non_face=is_non_face if non_faces else None)


def test_the_table_has_the_counts_beside_those_of_fer_2013():
    lines = table(summarize(findings_of())).splitlines()
    assert lines[0].split() == ["class", "train", "FER-2013", "test", "FER-2013"]
    assert lines[1].split() == ["angry", "9", "3,995", "1", "491"]
    assert lines[8].split() == ["all", "60", "28,709", "3", "3,589"]
    text = "\n".join(lines)
    assert "Equal images: 4 in 2 groups" in text
    assert "across splits                  2 groups" in text
    assert "with different labels          1 groups" in text
    assert "Nearly equal images (correlation 0.92 or more): 0 pairs in 0 groups" in text
    assert "test            2 equal, 0 more nearly equal: 66.7%" in text
    assert "Images of one grey value: 1 (1 test)" in text
    assert "No faces to over half of FER+'s ten people: 3 (2 train, 1 test)" in text


def test_the_table_of_other_classes_has_no_counts_of_fer_2013_and_no_non_faces():
    summary = summarize(findings_of(class_names=("yes", "no"), non_faces=False))
    text = table(summary)
    assert "FER-2013" not in text
    assert "No faces" not in text
    assert [line.split() for line in text.splitlines()[:3]] == [
        ["class", "train", "test"],
        ["yes", "30", "3"],
        ["no", "30", "0"],
    ]
    summary["near"]["is_complete"] = False
    assert ": more than 0 pairs" in table(summary)


@pytest.mark.parametrize("non_faces", [False, True])
def test_all_is_written_as_json_and_the_worst_as_a_picture(tmp_path, non_faces):
    findings = findings_of(non_faces=non_faces)
    summary = summarize(findings)
    write(summary, findings, epath.Path(tmp_path / "runs" / "audit"))
    written = json.loads((tmp_path / "runs" / "audit" / "audit.json").read_text())
    assert written.pop("class_counts_of_fer2013")["test"] == [491, 55, 528, 879, 594, 416, 626]
    assert written == summary
    with Image.open(tmp_path / "runs" / "audit" / "audit.png") as picture:
        assert picture.width > 1000
        assert np.ptp(np.asarray(picture.convert("L"))) > 100
