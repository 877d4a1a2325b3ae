"""FER+: its file, its rules, and its join with the images by row."""

import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_jax.config import make_config
from fer_jax.data import ferplus
from fer_jax.data.dataset import CLASS_NAMES, Dataset, Split
from fer_jax.data.ferplus import FERPLUS_CLASSES, VOTED, FerPlus
from fer_jax.data.load import load_dataset
from fer_jax.errors import UserError
from fer_jax.system.terminal import Terminal

HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
ROWS = {"train": 20, "validation": 6, "test": 6}
USAGES = ["Training"] * 20 + ["PublicTest"] * 6 + ["PrivateTest"] * 6
# The column of votes for each of FER-2013's labels: angry, disgust, fear, happy, sad, surprise, neutral.
COLUMN = [4, 5, 6, 1, 3, 2, 0]


@pytest.fixture
def small(monkeypatch):
    """Reduces FER-2013 to 32 images."""
    monkeypatch.setattr(ferplus, "ROWS", ROWS)


def votes(**counts) -> np.ndarray:
    """Returns one row of votes, int64 [1, 10]."""
    return np.array([[counts.get(name, 0) for name in VOTED]])


def votes_like(labels) -> np.ndarray:
    """Returns a row for each label, with seven votes for it and three for contempt: int64 [N, 10]."""
    found = np.zeros((len(labels), 10), int)
    found[np.arange(len(labels)), np.array(COLUMN)[labels]] = 7
    found[:, 7] = 3
    return found


def lines_of(counts: np.ndarray) -> list[str]:
    rows = [
        f"{usage},fer{row:07}.png,{','.join(map(str, votes))}"
        for row, (usage, votes) in enumerate(zip(USAGES, counts.tolist(), strict=True))
    ]
    return [HEADER, *rows]


def write(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def dataset_of(labels, **options) -> Dataset:
    """Returns a dataset of 8 x 8 pixel faces with these labels, in the official order."""
    labels = np.array(labels, np.int32)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 1), np.uint8)
    ends = np.cumsum([0, *ROWS.values()])
    return Dataset(
        "faces.csv",
        {
            name: Split(images[first:last], labels[first:last], np.arange(first, last))
            for name, (first, last) in zip(ROWS, itertools.pairwise(ends), strict=True)
        },
        **options,
    )


LABELS = np.arange(32) % 7

# ---- the rules


@pytest.mark.parametrize(
    ("counts", "label"),
    [
        ({"fear": 6, "surprise": 4}, "fear"),
        ({"fear": 5, "surprise": 5}, None),
        # Single votes are dropped first: anger has 5 of 8 votes, not 5 of 10.
        ({"anger": 5, "sadness": 3, "neutral": 1, "fear": 1}, "anger"),
        ({"anger": 4, "sadness": 2, "neutral": 2, "unknown": 2}, None),
        ({"contempt": 6, "neutral": 4}, "contempt"),
        ({"unknown": 6, "neutral": 4}, None),
        ({"NF": 10}, None),
        (dict.fromkeys(VOTED, 1), None),
        ({}, None),
    ],
)
def test_the_majority_is_over_half_of_the_votes_that_are_not_single(counts, label):
    expected = -1 if label is None else FERPLUS_CLASSES.index(label)
    assert ferplus.majority_labels(votes(**counts)).tolist() == [expected]


@pytest.mark.parametrize(
    ("counts", "target"),
    [
        ({"fear": 10}, {"fear": 1}),
        # The first column reaches three quarters of the votes, so the second is not taken.
        ({"fear": 8, "surprise": 2}, {"fear": 1}),
        ({"fear": 6, "surprise": 4}, {"fear": 0.6, "surprise": 0.4}),
        ({"neutral": 4, "anger": 3, "sadness": 2, "fear": 1}, {"neutral": 4 / 7, "anger": 3 / 7}),
        ({"neutral": 4, "anger": 2, "sadness": 2, "fear": 2}, None),  # four columns
        ({"neutral": 4, "anger": 3, "sadness": 3}, {"neutral": 0.4, "anger": 0.3, "sadness": 0.3}),
        # Unknown ends the selection, and counts only if it comes first.
        ({"neutral": 6, "unknown": 4}, {"neutral": 1}),
        ({"neutral": 5, "unknown": 5}, None),
        ({"unknown": 6, "neutral": 4}, None),
        ({"neutral": 4, "unknown": 3, "anger": 3}, {"neutral": 4 / 7, "anger": 3 / 7}),
        ({"neutral": 4, "unknown": 4, "anger": 2}, None),  # four of ten votes are too few
        ({"NF": 9, "neutral": 1}, None),
        (dict.fromkeys(VOTED, 1), None),
        ({}, None),
    ],
)
def test_soft_targets_are_what_fer_plus_trains_on(counts, target):
    expected = [0.0 if target is None else target.get(name, 0.0) for name in FERPLUS_CLASSES]
    assert ferplus.soft_targets(votes(**counts)).tolist() == [pytest.approx(expected)]


@given(st.lists(st.lists(st.integers(0, 9), min_size=10, max_size=10), min_size=1, max_size=8))
def test_soft_targets_are_distributions_whose_favourite_is_the_majority_where_there_is_one(rows):
    counts = np.array(rows)
    targets, labels = ferplus.soft_targets(counts), ferplus.majority_labels(counts)
    sums = targets.sum(axis=1)
    assert np.all(np.isclose(sums, 1) | (sums == 0))
    assert np.all(targets >= 0)
    assert np.all(np.count_nonzero(targets, axis=1) <= 3)
    clear = labels >= 0
    assert targets[clear].argmax(axis=1).tolist() == labels[clear].tolist()
    assert np.all(sums[clear] > 0)
    # Rows don't depend on one another, and single votes don't count.
    np.testing.assert_array_equal(ferplus.soft_targets(counts[::-1]), targets[::-1])
    np.testing.assert_array_equal(ferplus.soft_targets(counts * (counts > 1)), targets)


def test_shares_are_of_the_votes_for_the_seven_classes_in_the_order_of_fer_2013():
    counts = votes(fear=4, happiness=1, contempt=3, unknown=2)
    assert ferplus.shares_of_seven(counts).tolist() == [[0, 0, 0.8, 0.2, 0, 0, 0]]
    for label, column in enumerate(COLUMN):
        shares = ferplus.shares_of_seven(votes(**{VOTED[column]: 10}))
        assert shares.tolist() == np.eye(7)[[label]].tolist()
    assert not ferplus.shares_of_seven(votes(contempt=10)).any()
    assert not ferplus.shares_of_seven(votes(NF=6, anger=4)).any()
    assert ferplus.non_faces(np.concatenate([votes(NF=6, anger=4), votes(NF=5, anger=5)])).tolist() == [True, False]


# ---- the file


def test_a_file_is_read_in_its_order_and_by_the_names_of_its_columns(small, tmp_path):
    counts = np.random.default_rng(0).multinomial(10, [0.1] * 10, size=32)
    lines = lines_of(counts)
    read = ferplus.read(write(tmp_path / "a.csv", lines))
    np.testing.assert_array_equal(read.votes, counts)
    assert read.defects == ()
    # Excel's byte-order mark and line ends, and the columns in reverse order.
    turned = [",".join(reversed(line.split(","))) for line in lines]
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*turned, "", ""]).encode())
    np.testing.assert_array_equal(ferplus.read(tmp_path / "b.csv").votes, counts)


def test_what_is_odd_about_the_published_file_is_counted(small, tmp_path):
    lines = lines_of(votes_like(LABELS))
    lines[3] = "Training,,0,0,0,0,0,0,0,0,0,10"
    lines[4] = "Training, ,0,0,0,0,0,0,0,0,0,10"
    lines[7] = lines[6]
    lines[9] = "Training,fer0000008.png,4,0,0,0,3,0,0,1,1,0"
    assert ferplus.read(write(tmp_path / "a.csv", lines)).defects == (
        "2 without the image's name",
        "1 with a name that was there before",
        "1 with another number of votes than 10",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], r"row 1: no column is called Usage, .*; FER\+'s fer2013new.csv has the columns Usage,Image"),
        (lambda lines: [lines[0].replace("contempt,", ""), *lines[1:]], "row 1: no column is called contempt; "),
        (lambda lines: ["PK\x03\x04\x00\x00", *lines], "row 1: no column is called Usage"),
        (
            lambda lines: [*lines[:9], lines[9][:20]],
            r"row 10: 2 fields; the header names 12 \(the file ends in this row",
        ),
        (
            lambda lines: [*lines[:9], lines[9][:-1]],
            r"row 10: NF is ''; it should be a number of votes from 0 to 10 \(the file ends",
        ),
        (lambda lines: lines[:9], "row 9: the file ends here, after 8 rows; FER-2013 has 32 images"),
        (lambda lines: [*lines, lines[-1]], "row 34: a row more than FER-2013's 32 images"),
        (
            lambda lines: [*lines[:1], *reversed(lines[1:])],
            "row 2: Usage is 'PrivateTest'; in FER-2013's order this is",
        ),
        (lambda lines: [*lines[:4], lines[4] + ",7", *lines[5:]], "row 5: 13 fields; the header names 12$"),
        (
            lambda lines: [line.replace("g,7,", "g,x,") for line in lines],
            "row 8: neutral is 'x'; it should be a number",
        ),
        (lambda lines: [line.replace("g,7,", "g,-1,") for line in lines], "row 8: neutral is '-1'; it should be"),
        (lambda lines: [line.replace("g,7,", "g,11,") for line in lines], "row 8: neutral is '11'; it should be"),
        (lambda lines: [line.replace("g,7,", "g,7.0,") for line in lines], "row 8: neutral is '7.0'; it should be"),
        (lambda lines: [line.replace("g,7,", "g,٣,") for line in lines], "row 8: neutral is "),
        (lambda lines: [*lines[:6], "x" * 200_000, *lines[6:]], "row 7: "),
    ],
    ids=range(15),
)
def test_a_wrong_file_is_one_line_that_names_file_and_row(small, tmp_path, change, message):
    path = write(tmp_path / "wrong.csv", change(lines_of(votes_like(LABELS))))
    with pytest.raises(UserError, match=message) as error:
        ferplus.read(path)
    assert str(error.value).startswith(f"{path}: row ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@given(st.binary(max_size=300))
def test_whatever_is_in_a_file_it_is_a_users_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "any.csv"
    path.write_bytes(HEADER.encode() + b"\n" + content)
    with pytest.raises(UserError, match=r"any\.csv: row \d+: "):
        ferplus.read(path)


def test_a_file_that_is_not_there_or_a_folder_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match=r"there is no such file; config\.dataset\.ferplus names"):
        ferplus.read(tmp_path / "missing.csv")
    with pytest.raises(UserError, match="cannot be read"):
        ferplus.read(tmp_path)


# ---- the join


def test_targets_are_the_label_and_the_votes_by_their_weight(small):
    counts = votes_like(LABELS)
    counts[0] = votes(neutral=5, anger=3, contempt=2)
    counts[1] = votes(NF=6, anger=4)
    counts[2] = votes(contempt=8, unknown=2)
    dataset = dataset_of(LABELS)
    joined, said = ferplus.join(dataset, FerPlus("new.csv", counts), target_weight=0.25)
    targets = joined.splits["train"].targets
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets[0], [0.75 + 0.25 * 3 / 8, 0, 0, 0, 0, 0, 0.25 * 5 / 8], atol=1e-7)
    # An image that is no face, or has no vote for any of the seven classes, keeps its label.
    assert targets[1:].tolist() == np.eye(7)[LABELS[1:20]].tolist()
    assert "2 train images that are no faces, or without a vote for any of the seven, keep their label" in said
    assert joined.class_names == CLASS_NAMES
    for name in ROWS:
        ours, theirs = joined.splits[name], dataset.splits[name]
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert (ours.targets is None) == (name != "train")


def test_majority_and_soft_have_the_eight_classes_and_leave_out_what_is_not_clear(small):
    counts = votes_like(LABELS)
    counts[0] = votes(neutral=5, anger=3, contempt=2)  # kept by the task soft only
    counts[1] = votes(NF=10)
    counts[20] = votes(neutral=5, anger=3, contempt=2)
    dataset = dataset_of(LABELS)
    for task, expected_rows in (("majority", range(2, 20)), ("soft", [0, *range(2, 20)])):
        joined, said = ferplus.join(dataset, FerPlus("new.csv", counts), task=task)
        train = joined.splits["train"]
        assert train.rows.tolist() == list(expected_rows)
        np.testing.assert_array_equal(train.images, dataset.splits["train"].images[train.rows])
        assert train.labels.tolist() == [0 if row == 0 else COLUMN[LABELS[row]] for row in train.rows]
        assert joined.splits["validation"].rows.tolist() == list(range(21, 26))
        assert joined.splits["validation"].labels.tolist() == [COLUMN[label] for label in LABELS[21:26]]
        assert joined.class_names == FERPLUS_CLASSES
        assert joined.splits["test"].targets is joined.splits["validation"].targets is None
        assert f"keeps {len(train)} of 20 train, 5 of 6 validation, 6 of 6 test images" in said
        if task == "soft":
            np.testing.assert_allclose(train.targets[0], [0.625, 0, 0, 0, 0.375, 0, 0, 0])
            np.testing.assert_allclose(train.targets.sum(axis=1), 1)
        else:
            assert train.targets is None


def test_each_use_has_a_fingerprint_of_its_own_and_none_has_the_old_one(small):
    dataset, labels = dataset_of(LABELS), FerPlus("new.csv", votes_like(LABELS))
    same, said = ferplus.join(dataset, labels)
    assert same.fingerprint == dataset.fingerprint
    assert "nothing of it is used" in said
    uses = [{"target_weight": 0.5}, {"target_weight": 1}, {"task": "majority"}, {"task": "soft"}]
    counts = votes_like(LABELS)
    counts[3] = votes(neutral=6, anger=4)
    prints = [ferplus.join(dataset, labels, **use)[0].fingerprint for use in uses]
    prints += [ferplus.join(dataset, FerPlus("new.csv", counts), **use)[0].fingerprint for use in uses]
    # At a weight of 1, votes that are all for the label make the labels the targets, which still count as targets.
    assert len({dataset.fingerprint, *prints}) >= 8


def test_rows_in_another_order_are_found_out_by_what_the_votes_say(small):
    labels = FerPlus("new.csv", votes_like(np.roll(LABELS, 1)))
    with pytest.raises(UserError) as error:
        ferplus.join(dataset_of(LABELS), labels)
    assert str(error.value) == (
        "new.csv: its favourites are the labels of faces.csv in 0.0% of the images; rightly joined, in 64 %: "
        "the rows of the one are not in the order of the other"
    )
    # 14 of 31 rows in the right order are above the bound, 13 are below it.
    for right in (13, 14):
        mixed = np.concatenate([votes_like(LABELS)[:right], votes_like(np.roll(LABELS, 1))[right:]])
        mixed[31] = votes(contempt=9)  # a row without a favourite among the seven classes doesn't count
        if right == 13:
            with pytest.raises(UserError, match=r"in 41\.9% of the images"):
                ferplus.join(dataset_of(LABELS), FerPlus("new.csv", mixed))
        else:
            assert "in 45.2%" in ferplus.join(dataset_of(LABELS), FerPlus("new.csv", mixed))[1]


def test_files_that_are_not_in_the_official_order_are_refused(small):
    labels, dataset = FerPlus("new.csv", votes_like(LABELS)), dataset_of(LABELS)
    start = "config.dataset.ferplus needs FER-2013 in its official order, such as fer2013.csv; faces.csv has "
    fewer = Dataset("faces.csv", {name: dataset.splits[name] for name in ("train", "validation")})
    with pytest.raises(UserError, match=f"^{start}26 images in place of 32"):
        ferplus.join(fewer, labels)
    # The order of a folder, whose files are sorted by name: the test images come first.
    turned = {name: split.take(slice(None)) for name, split in dataset.splits.items()}
    for name, first in (("test", 0), ("train", 6), ("validation", 26)):
        turned[name].rows[:] = np.arange(first, first + len(turned[name]))
    with pytest.raises(UserError, match=f"^{start}an image of the train split as its image 21"):
        ferplus.join(Dataset("faces.csv", turned), labels)
    with pytest.raises(UserError, match=f"^{start}the classes a, b$"):
        ferplus.join(dataset_of(LABELS, class_names=("a", "b")), labels)


# ---- from the files


def load(tmp_path, capsys, usages=USAGES, labels=LABELS, counts=None, header="emotion,pixels,Usage", **options):
    """Returns the dataset of a csv and an FER+ file in `tmp_path`, and what was printed.

    Images 20 and 21, if there are that many, equal images 0 and 1.
    """
    images = np.random.default_rng(1).integers(0, 256, (len(labels), 8, 8, 1), np.uint8)
    images[20:22] = images[: len(images[20:22])]
    columns = {"emotion": labels.tolist(), "pixels": [" ".join(map(str, i.ravel())) for i in images], "Usage": usages}
    rows = zip(*(columns[name] for name in header.split(",")), strict=True)
    write(tmp_path / "faces.csv", [header, *(",".join(map(str, row)) for row in rows)])
    write(tmp_path / "new.csv", lines_of(votes_like(LABELS) if counts is None else counts))
    values = {"path": str(tmp_path / "faces.csv"), "cache_dir": str(tmp_path / "cache"), "image_size": 8}
    values |= {"ferplus": str(tmp_path / "new.csv")} | options
    config = make_config(dataset=values).dataset
    dataset = load_dataset(config, Terminal(is_primary=True))
    return dataset, capsys.readouterr().out


def test_the_options_reach_the_dataset_and_all_is_said_in_one_line(small, tmp_path, capsys):
    counts = votes_like(LABELS)
    counts[0], counts[5] = votes(NF=10), votes(NF=9)
    soft, out = load(tmp_path, capsys, counts=counts, ferplus_task="soft")
    assert soft.class_names == FERPLUS_CLASSES
    assert soft.name == "faces.csv, FER+ soft"
    assert [line for line in out.splitlines() if line.startswith("FER+")] == [
        "FER+: 32 rows (of them 1 with another number of votes than 10); the favourites are FER-2013's labels in "
        "100.0%; task soft keeps 18 of 20 train, 6 of 6 validation, 6 of 6 test images; the votes on the others are "
        "for no face or not clear."
    ]
    # Image 0 is left out, so its copy no longer counts as a copy.
    assert soft.splits["validation"].is_copy.tolist() == [False, True, False, False, False, False]
    mixed, _ = load(tmp_path, capsys, counts=counts, ferplus_target_weight=0.5)
    assert mixed.splits["train"].arrays()["target"].shape == (20, 7)
    assert mixed.splits["validation"].is_copy.tolist() == [True, True, False, False, False, False]


def test_a_tenth_that_is_held_out_of_training_is_joined_by_its_rows(small, tmp_path, capsys):
    labels = np.arange(20) % 2
    counts = np.concatenate([votes_like(labels), votes_like(LABELS[20:])])
    counts[:, 0] += np.arange(32) % 3  # so that rows differ
    options = {"labels": labels, "usages": None, "header": "emotion,pixels", "counts": counts}
    mixed, _ = load(tmp_path, capsys, **options, ferplus_target_weight=1)
    train, validation = mixed.splits["train"], mixed.splits["validation"]
    assert sorted([*train.rows, *validation.rows]) == list(range(20))
    np.testing.assert_allclose(train.targets, ferplus.shares_of_seven(counts[train.rows]), atol=1e-7)
    assert validation.targets is None
    majority, _ = load(tmp_path, capsys, **options, ferplus_task="majority")
    assert majority.splits["validation"].rows.tolist() == validation.rows.tolist()
    assert majority.splits["validation"].labels.tolist() == [COLUMN[label] for label in validation.labels]


def test_without_a_path_the_embedded_faces_are_refused(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"embedded faces has 2,100 images in place of 32$"):
        load(tmp_path, capsys, path=None)


@pytest.mark.skipif(
    {"FER2013_CSV", "FERPLUS_CSV"} - os.environ.keys() != set(),
    reason="FER2013_CSV and FERPLUS_CSV do not say where the real files are",
)
def test_the_real_files_give_the_published_sizes():
    labels = ferplus.read(os.environ["FERPLUS_CSV"])
    dataset = load_dataset(make_config(dataset={"path": os.environ["FER2013_CSV"]}).dataset)
    assert labels.defects == (
        "173 without the image's name",
        "4 with a name that was there before",
        "1 with another number of votes than 10",
    )
    majority, said = ferplus.join(dataset, labels, task="majority")
    assert "FER-2013's labels in 64.4%" in said
    assert [len(majority.splits[name]) for name in ROWS] == [25060, 3199, 3153]
    _, said = ferplus.join(dataset, labels, target_weight=0.3)
    assert "152 train images" in said
