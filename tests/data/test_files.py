import gzip
import io
import os
import pathlib
import pty
import subprocess
import sys
import tarfile
import termios
import zipfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

import fer_jax
from fer_jax.data import csv_layout, files
from fer_jax.data.dataset import CLASS_NAMES, Dataset
from fer_jax.errors import UserError
from fer_jax.system.terminal import Terminal

USAGES = ("Training", "PublicTest", "PrivateTest")
SPLIT_OF_USAGE = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}


def settings(**others) -> hypothesis.settings:
    """Returns settings that allow fixtures: the examples of a test share its folder, and each overwrites the files."""
    allowed = [hypothesis.HealthCheck.function_scoped_fixture]
    return hypothesis.settings(deadline=None, suppress_health_check=allowed, **others)


@pytest.fixture
def four_rows(csv_bytes, random_images) -> list[bytes]:
    """Returns the lines of a valid csv, each with its line end: a header and rows 2 to 5."""
    rows = csv_bytes(random_images(4), [0, 6, 3, 2], ["Training", "PublicTest", "Training", "PrivateTest"])
    return rows.splitlines(keepends=True)


@pytest.fixture
def sound_csv(tmp_path, four_rows) -> pathlib.Path:
    """Writes `four_rows` to a file and returns its path, which is short enough to print when a test fails."""
    path = tmp_path / "sound.csv"
    path.write_bytes(b"".join(four_rows))
    return path


def pixels(number: int) -> bytes:
    return b" ".join([b"128"] * number)


def assert_valid(dataset: Dataset) -> None:
    """Asserts what `files.read` promises of every dataset."""
    assert {"train", "validation"} <= set(dataset.splits) <= {"train", "validation", "test"}
    rows = np.concatenate([split.rows for split in dataset.splits.values()])
    assert sorted(rows) == list(range(len(rows)))
    for split in dataset.splits.values():
        assert len(split) > 0
        assert (split.images.dtype, split.images.shape) == (np.uint8, (len(split), 48, 48, 1))
        assert (split.labels.dtype, split.labels.shape) == (np.int32, (len(split),))
        assert (split.rows.dtype, split.rows.shape) == (np.int64, (len(split),))
        assert (np.diff(split.rows) > 0).all()
        assert split.labels.min() >= 0
        assert split.labels.max() < len(CLASS_NAMES)


def assert_holds(dataset: Dataset, images: np.ndarray, labels: list[int], usages: list[str]) -> None:
    """Asserts that the dataset consists of these examples, in this order."""
    assert set(dataset.splits) == {SPLIT_OF_USAGE[usage] for usage in usages}
    for usage in set(usages):
        rows = [row for row, value in enumerate(usages) if value == usage]
        split = dataset.splits[SPLIT_OF_USAGE[usage]]
        assert split.rows.tolist() == rows
        assert split.labels.tolist() == [labels[row] for row in rows]
        np.testing.assert_array_equal(split.images, images[rows])
    assert_valid(dataset)


# Examples as (seed of the images, their labels, their usages), with at least one of Training and of PublicTest.
examples = st.tuples(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from(USAGES)), max_size=6),
    st.tuples(st.integers(0, 6), st.integers(0, 6)),
    st.randoms(use_true_random=False),
)


def draw(drawn) -> tuple[int, list[int], list[str]]:
    seed, rows, (train_label, validation_label), random = drawn
    rows = [*rows, (train_label, "Training"), (validation_label, "PublicTest")]
    random.shuffle(rows)
    return seed, [label for label, _ in rows], [usage for _, usage in rows]


@settings()
@hypothesis.given(
    drawn=examples,
    header=st.sampled_from(
        ["emotion,pixels,Usage", "emotion, Usage, pixels", '"emotion", "pixels", "Usage"', "Usage,pixels,emotion"]
    ),
    quote=st.sampled_from(["", '"']),
    line_end=st.sampled_from(["\n", "\r\n"]),
    byte_order_mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    ends_with_line_end=st.booleans(),
    compress=st.booleans(),
)
def test_every_csv_layout_is_read_back_exactly(
    tmp_path, csv_bytes, random_images, drawn, header, quote, line_end, byte_order_mark, ends_with_line_end, compress
):
    seed, labels, usages = draw(drawn)
    images = random_images(len(labels), seed)
    content = byte_order_mark + csv_bytes(images, labels, usages, header.replace('"', ""), quote, line_end)
    content = content.replace(header.replace('"', "").encode(), header.encode(), 1)
    if not ends_with_line_end:
        content = content.rstrip()
    path = tmp_path / "faces"  # no suffix: the content decides
    path.write_bytes(gzip.compress(content, 1) if compress else content)
    assert_holds(files.read(path), images, labels, usages)


@settings(max_examples=30)
@hypothesis.given(drawn=examples)
def test_a_folder_of_png_files_is_read_back_exactly(tmp_path_factory, random_images, drawn):
    seed, labels, usages = draw(drawn)
    images = random_images(len(labels), seed)
    folder = tmp_path_factory.mktemp("faces")
    names = []
    for number, (image, label, usage) in enumerate(zip(images, labels, usages, strict=True)):
        split_folder = "train" if usage == "Training" else "test"
        names.append(f"{split_folder}/{CLASS_NAMES[label]}/{usage}_{number}.png")
        save(folder / names[-1], image)
    order = np.argsort(names)
    dataset = files.read(folder)
    assert dataset.name == folder.name
    assert_holds(dataset, images[order], [labels[i] for i in order], [usages[i] for i in order])


def test_more_rows_than_are_parsed_at_once_keep_their_order(tmp_path, csv_bytes, random_images):
    labels = [row % 7 for row in range(150)]
    usages = [USAGES[row % 3] for row in range(150)]
    images = random_images(150)
    path = tmp_path / "fer2013.csv"
    path.write_bytes(csv_bytes(images, labels, usages))
    assert_holds(files.read(path), images, labels, usages)


numbers = st.one_of(
    st.integers(0, 255).map(str),
    st.integers(0, 255).map("{:03d}".format),
    st.sampled_from(
        ["256", "999", "0000", "1000", "-1", "+1", "1.5", "12a", "a", "\t7", "\u0663", "\xb2", "0x1f", "nan"]
    ),
)


@hypothesis.given(
    edits=st.lists(st.tuples(st.integers(0, 2303), numbers), max_size=3),
    count=st.one_of(st.just(2304), st.just(2304), st.sampled_from([0, 1, 2303, 2305, 4608])),
    blanks=st.sampled_from([" ", "  "]),
    around=st.sampled_from(["", " "]),
)
def test_the_fast_parser_accepts_what_reading_number_by_number_accepts(edits, count, blanks, around):
    values = ["128"] * count
    for position, number in edits:
        if position < count:
            values[position] = number
    field = (around + blanks.join(values) + around).encode()
    is_valid = count == 2304 and all(
        value.isascii() and value.isdigit() and len(value) <= 3 and int(value) <= 255 for value in values
    )
    assert (csv_layout.complaint(field, 2304) is None) == is_valid
    if is_valid:
        for fields in ([field], [pixels(2304), field, pixels(2304)]):
            np.testing.assert_array_equal(
                csv_layout.parse_pixels(fields, 2304)[len(fields) // 2], np.array(values, int)
            )
    else:
        for fields in ([field], [pixels(2304), field, pixels(2304)]):
            with pytest.raises(ValueError, match=r"value|character"):
                csv_layout.parse_pixels(fields, 2304)


def test_the_fast_parser_counts_each_row_and_not_only_all_of_them():
    for counts in ((2305, 2303), (2303, 2305), (0, 4608), (4608, 0), (2304, 2303, 2305)):
        with pytest.raises(ValueError, match="a field with another number of values"):
            csv_layout.parse_pixels([pixels(count) for count in counts], 2304)


@settings(max_examples=400)
@hypothesis.given(data=st.data(), compress=st.booleans())
def test_a_damaged_csv_reads_as_a_valid_data_set_or_is_a_user_error(tmp_path, sound_csv, data, compress):
    content = bytearray(sound_csv.read_bytes())
    if compress:
        content = bytearray(gzip.compress(content, 1, mtime=0))
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["byte", "cut", "delete", "insert", "swap"]))
        # Most bytes are pixels, so half of the places are picked from the others, which make up the structure.
        structure = [i for i, byte in enumerate(content) if not (byte == 32 or 48 <= byte <= 57)] or [0]
        place = data.draw(st.one_of(st.integers(0, len(content)), st.sampled_from(structure)))
        if kind == "byte" and place < len(content):
            byte = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b' ,\n\r"0-.')))
            content[place] = byte
        elif kind == "cut":
            del content[place:]
        elif kind == "delete":
            del content[place : place + data.draw(st.sampled_from([1, 2, 10, 5000]))]
        elif kind == "insert":
            content[place:place] = data.draw(
                st.one_of(st.binary(max_size=8), st.sampled_from([b"\n", b'"', b"\0", b"7 "]))
            )
        else:
            content = content[place:] + content[:place]
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content)
    assert_valid_or_user_error(path, path.name)


@settings()
@hypothesis.given(
    content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-16")))
)
def test_any_file_is_a_user_error_when_it_is_no_csv(tmp_path, content):
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content)
    assert_valid_or_user_error(path, path.name)


def assert_valid_or_user_error(path: pathlib.Path, file_name: str) -> None:
    """Asserts that `path` is read as a valid dataset or raises a UserError of one line that holds `file_name`."""
    message = None
    try:
        dataset = files.read(path)
    except UserError as error:
        message = str(error)
    if message is None:
        assert_valid(dataset)
    else:
        assert file_name in message
        assert len(message.splitlines()) == 1


def replace_row(number: int, old: bytes, new: bytes):
    """Returns a function that edits the lines of `four_rows`; row 1 is the header."""

    def edit(lines: list[bytes]) -> list[bytes]:
        assert old in lines[number - 1]
        return [*lines[: number - 1], lines[number - 1].replace(old, new, 1), *lines[number:]]

    return edit


def set_row(number: int, line: bytes):
    return lambda lines: [*lines[: number - 1], line, *lines[number:]]


BAD_ROWS = {
    "too few pixels": (set_row(3, b"6," + pixels(2303) + b",PublicTest\n"), "row 3: 2303 pixels; an image has 2304"),
    "too many pixels": (set_row(3, b"6," + pixels(2305) + b",PublicTest\n"), "row 3: 2305 pixels; an image has 2304"),
    "no pixels": (set_row(3, b"6,,PublicTest\n"), "row 3: 0 pixels"),
    "a pixel that moved to the row before": (
        lambda lines: [
            lines[0],
            b"0," + pixels(2305) + b",Training\n",
            b"0," + pixels(2303) + b",PublicTest\n",
            *lines[3:],
        ],
        "row 2: 2305 pixels",
    ),
    "letter in a number": (
        set_row(4, b"3,12a " + pixels(2303) + b",Training\n"),
        "row 4: pixel 1 is '12a'; it should be",
    ),
    "negative pixel": (set_row(4, b"3,9 -1 " + pixels(2302) + b",Training\n"), "row 4: pixel 2 is '-1'"),
    "pixel over 255": (set_row(4, b"3," + pixels(2303) + b" 256,Training\n"), "row 4: pixel 2304 is '256'"),
    "pixel over 999": (set_row(4, b"3," + pixels(2303) + b" 1000,Training\n"), "row 4: pixel 2304 is '1000'"),
    "fraction": (set_row(4, b"3,1.5 " + pixels(2303) + b",Training\n"), "row 4: pixel 1 is '1.5'"),
    "tabs": (
        set_row(4, b"3," + pixels(2304).replace(b" ", b"\t") + b",Training\n"),
        r"row 4: pixel 1 is '128\t128\t",
    ),
    "label over 6": (
        replace_row(5, b"2,", b"7,"),
        "row 5: emotion is '7'; it should be a whole number from 0 (angry) to 6",
    ),
    "negative label": (replace_row(5, b"2,", b"-1,"), "row 5: emotion is '-1'"),
    "fraction as label": (replace_row(5, b"2,", b"2.0,"), "row 5: emotion is '2.0'"),
    "class name as label": (replace_row(5, b"2,", b"fear,"), "row 5: emotion is 'fear'"),
    "no label": (replace_row(5, b"2,", b","), "row 5: emotion is ''"),
    "unknown usage": (replace_row(2, b"Training", b"Part 1"), "row 2: Usage is 'Part 1'; it should be Training, Pub"),
    "no usage": (replace_row(2, b"Training", b""), "row 2: Usage is ''"),
    "a field too many": (replace_row(3, b",", b",,"), "row 3: 4 fields; the header names 3"),
    "a field too few": (replace_row(3, b",PublicTest", b""), "row 3: 2 fields; the header names 3"),
    "open quote": (replace_row(3, b",", b',"'), "row 3: quotes that csv doesn't allow; the header names 3"),
    "blank lines count as rows of the file": (
        lambda lines: [lines[0], b"\n", lines[1], b"\r\n", b"  \n", b"9,1,Training\n"],
        "row 6: emotion is '9'",
    ),
    "a long line": (set_row(3, b"6," + pixels(600_000) + b",PublicTest\n"), "row 3: over 2097151 bytes long"),
    "no validation rows": (lambda lines: lines[:2], "no row has Usage PublicTest, the validation split"),
    "only the header": (lambda lines: lines[:1], "there are no rows after the header"),
    "cut off in the pixels": (
        lambda lines: [*lines[:4], lines[4][:2000]],
        "row 5: 2 fields; the header names 3 (the file ends",
    ),
    "cut off in the usage": (lambda lines: [*lines[:4], lines[4][:-3]], "row 5: Usage is 'PrivateTe'; it should be"),
    "nothing at all": (
        lambda lines: [],
        "the file is empty; a FER-2013 csv starts with the header emotion,pixels,Usage",
    ),
    "no pixels column": (replace_row(1, b"pixels", b"image"), "row 1: no column is called pixels"),
    "no emotion column": (replace_row(1, b"emotion,pixels", b"face,pixels"), "row 1: no column is called emotion"),
    "two usage columns": (replace_row(1, b"pixels", b"usage"), "row 1: usage and Usage are both called like usage"),
    "two emotion columns": (
        replace_row(1, b"Usage", b"Emotion"),
        "row 1: emotion and Emotion are both called like emotion",
    ),
    "usage by another name": (
        replace_row(1, b"Usage", b"Part"),
        "row 1: no column is called Usage, the row is 'emotion,pixels,",
    ),
    "no header": (lambda lines: lines[1:], "row 1: no column is called emotion"),
    "the unlabelled test set": (
        lambda lines: [b"pixels\n", pixels(2304) + b"\n"],
        "this is the competition's unlabelled test.csv, which cannot be trained or evaluated on; give fer2013.csv",
    ),
    "another csv": (
        lambda lines: [b"id,name\n", b"1,Ann\n"],
        "row 1: no column is called emotion, the row is 'id,name'",
    ),
    "a web page": (
        lambda lines: [b"<!DOCTYPE html>\n"],
        "row 1: no column is called emotion, the row is '<!DOCTYPE html>'",
    ),
    "line ends of another age": (
        lambda lines: [b"".join(lines * 100).replace(b"\n", b"\r")],
        "row 1: over 2097151 bytes without a line end",
    ),
}


@pytest.mark.parametrize(("edit", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
def test_a_wrong_csv_is_named_with_file_and_row(tmp_path, four_rows, edit, expected, compress):
    content = b"".join(edit(four_rows))
    path = tmp_path / "some.csv"
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(UserError) as error:
        files.read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_wrong_row_is_named_wherever_it_lies_among_those_parsed_at_once(tmp_path, csv_bytes, random_images):
    lines = csv_bytes(random_images(150), [0] * 150, ["Training", "PublicTest"] * 75).splitlines(keepends=True)
    path = tmp_path / "fer2013.csv"
    for row in (2, 64, 65, 66, 67, 130, 151):
        path.write_bytes(b"".join(set_row(row, b"0,256 " + pixels(2303) + b",Training\n")(lines)))
        with pytest.raises(UserError, match=f"row {row}: pixel 1 is '256'"):
            files.read(path)


def test_a_file_that_ends_in_a_wrong_row_is_said_to_be_cut_off(tmp_path, four_rows):
    path = tmp_path / "fer2013.csv"
    for length in (3, 100, 4000):
        path.write_bytes(b"".join(four_rows[:3]) + four_rows[3][:length])
        with pytest.raises(UserError, match=r"row 4: .*the file ends in this row: it may be cut off"):
            files.read(path)


def test_a_gzip_file_that_is_cut_off_or_damaged_is_named(tmp_path, four_rows):
    whole = gzip.compress(b"".join(four_rows))
    path = tmp_path / "fer2013.csv.gz"
    damaged = bytearray(whole)
    damaged[-6] ^= 0xFF  # in the checksum
    for content in (whole[: len(whole) // 2], whole[:-4], whole[:5], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=r"fer2013\.csv\.gz: row \d: the compressed file is damaged or cut off here"
        ):
            files.read(path)


def test_archives_are_refused_by_what_they_are(tmp_path, four_rows):
    csv_file = tmp_path / "fer2013.csv"
    csv_file.write_bytes(b"".join(four_rows))
    with zipfile.ZipFile(tmp_path / "fer.zip", "w") as archive:
        archive.write(csv_file, "fer2013.csv")
    with tarfile.open(tmp_path / "fer2013.tar.gz", "w:gz") as archive:
        archive.add(csv_file, "fer2013/fer2013.csv")
    with pytest.raises(UserError, match=r"fer\.zip: a zip archive; unpack it"):
        files.read(tmp_path / "fer.zip")
    with pytest.raises(UserError, match=r"fer2013\.tar\.gz: a tar archive; unpack it"):
        files.read(tmp_path / "fer2013.tar.gz")


def test_other_columns_and_blank_lines_are_passed_over(tmp_path, random_images, csv_bytes):
    images = random_images(2)
    first, *rows = csv_bytes(images, [1, 2], ["Training", "PublicTest"]).decode().splitlines()
    lines = ["id," + first, *(f"{number},{row}" for number, row in enumerate(rows)), "", " "]
    path = tmp_path / "fer2013.csv"
    path.write_text("\n".join(lines))
    assert_holds(files.read(path), images, [1, 2], ["Training", "PublicTest"])


@pytest.mark.parametrize("read", [files.read, files.identify])
def test_a_path_that_cannot_be_read_is_named(tmp_path, read):
    with pytest.raises(UserError, match=r"missing\.csv: there is no such file or folder"):
        read(tmp_path / "missing.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/fer2013\.csv: cannot be read \(Not a directory\)"):
        read(tmp_path / "file/fer2013.csv")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: neither a file nor a folder"):
        read(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="loop: cannot be read"):
        read(tmp_path / "loop")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
@pytest.mark.parametrize("read", [files.read, files.identify])
def test_a_file_without_permission_is_named(tmp_path, four_rows, read):
    path = tmp_path / "fer2013.csv"
    path.write_bytes(b"".join(four_rows))
    path.chmod(0)
    with pytest.raises(UserError, match=r"fer2013\.csv: cannot be read \(Permission denied\)"):
        read(path)


# A part of train as validation


@pytest.fixture
def train_csv(tmp_path, csv_bytes, random_images) -> pathlib.Path:
    """Writes a csv like the competition's train.csv: 57 angry, 30 happy, 12 sad and 1 neutral face, without Usage."""
    labels = [0] * 57 + [3] * 30 + [4] * 12 + [6]
    path = tmp_path / "train.csv"
    path.write_bytes(csv_bytes(random_images(100), labels, [""] * 100, header="emotion,pixels"))
    return path


def test_without_usage_a_tenth_of_each_class_is_validation_and_a_warning_says_so(train_csv, random_images, capsys):
    dataset = files.read(train_csv, split_seed=5, terminal=Terminal(is_primary=True))
    assert np.bincount(dataset.splits["validation"].labels, minlength=7).tolist() == [6, 0, 0, 3, 1, 0, 0]
    assert np.bincount(dataset.splits["train"].labels, minlength=7).tolist() == [51, 0, 0, 27, 11, 0, 1]
    assert dataset.name == "train.csv, 10 % of train as validation, split seed 5"
    assert capsys.readouterr().err == (
        "fer_jax: warning: train.csv has no validation split: 10 of its 100 training images (10 % of each "
        "class, split seed 5) are validation.\n"
    )
    assert_valid(dataset)
    for split in dataset.splits.values():
        np.testing.assert_array_equal(split.images, random_images(100)[split.rows])


def test_what_is_held_out_is_a_function_of_the_split_seed(train_csv):
    rows = [files.read(train_csv, seed).splits["validation"].rows.tolist() for seed in (0, 1, 0)]
    assert rows[0] == rows[2] != rows[1]


def test_nothing_is_held_out_where_the_file_tells_the_splits(tmp_path, four_rows, capsys):
    path = tmp_path / "fer2013.csv"
    path.write_bytes(b"".join(four_rows))
    one, other = (files.read(path, split_seed, Terminal(is_primary=True)) for split_seed in (0, 1))
    assert one.fingerprint == other.fingerprint
    assert capsys.readouterr() == ("", "")


def test_too_few_images_to_hold_out_any_is_an_error(tmp_path, csv_bytes, random_images):
    path = tmp_path / "train.csv"
    path.write_bytes(csv_bytes(random_images(3), [0, 1, 2], [""] * 3, header="emotion,pixels"))
    with pytest.raises(UserError, match=r"train\.csv.*no validation images, and too few training images"):
        files.read(path)
    path.write_bytes(csv_bytes(random_images(3), [0, 1, 1], [""] * 3, header="emotion,pixels"))
    assert files.read(path).splits["validation"].labels.tolist() == [1]


# Folders


def save(path: pathlib.Path, image: np.ndarray | Image.Image) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image[:, :, 0])
    picture.save(path)
    return path


@pytest.fixture
def folder(tmp_path, random_images) -> pathlib.Path:
    """Writes a valid folder of three images, one per split, in alphabetical order of split and class."""
    images = random_images(3)
    save(tmp_path / "faces/test/neutral/PrivateTest_3.png", images[0])
    save(tmp_path / "faces/test/sad/PublicTest_2.png", images[1])
    save(tmp_path / "faces/train/angry/Training_1.png", images[2])
    return tmp_path / "faces"


def test_class_folders_are_mapped_by_name(tmp_path, random_images):
    label_of = {
        **{"angry": 0, "disgust": 1, "fear": 2, "happy": 3, "neutral": 6, "sad": 4, "surprise": 5},
        **{"ANGER": 0, "Disgusted": 1, "fearful": 2, "happiness": 3, "Sadness": 4, "surprised": 5},
    }
    names, expected = list(label_of), list(label_of.values())
    images = random_images(len(names))
    for name, image in zip(names, images, strict=True):
        save(tmp_path / "faces/Train" / name / "a.PNG", image)
        save(tmp_path / "faces/VAL" / name / "a.png", image)
    dataset = files.read(tmp_path / "faces")
    order = np.argsort(names)  # upper case first, as files are sorted
    for split in ("train", "validation"):
        assert dataset.splits[split].labels.tolist() == [expected[i] for i in order]
        np.testing.assert_array_equal(dataset.splits[split].images, images[order])


def test_what_is_no_image_or_hidden_is_passed_over(folder, random_images):
    before = files.read(folder)
    for name in (".DS_Store", "Thumbs.db", "._Training_1.png", ".hidden/a.png", "notes.txt"):
        for place in ("", "train", "train/angry"):
            path = folder / place / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no image")
    save(folder / "thumbnails/any/a.png", random_images(1)[0])
    assert files.read(folder).fingerprint == before.fingerprint


def test_an_image_saved_in_colours_is_read_as_grey(folder, random_images):
    grey = random_images(1)[0][:, :, 0]
    path = folder / "train/angry/Training_1.png"
    for mode in ("RGB", "RGBA", "P"):
        Image.fromarray(grey).convert(mode).save(path)
        np.testing.assert_array_equal(files.read(folder).splits["train"].images[0, :, :, 0], grey)
    Image.new("RGB", (48, 48), (255, 0, 0)).save(path)
    assert np.unique(files.read(folder).splits["train"].images).tolist() == [76]  # 0.299 * 255


def test_jpeg_files_are_read(folder, random_images):
    grey = np.tile(np.arange(48, dtype=np.uint8) * 4, (48, 1))
    for suffix in ("jpg", "JPEG"):
        Image.fromarray(grey).save(folder / f"train/angry/Training_2.{suffix}", format="JPEG", quality=95)
    images = files.read(folder).splits["train"].images
    assert len(images) == 3
    assert np.abs(images[1:, :, :, 0].astype(int) - grey).max() <= 3


def test_a_test_folder_without_prefixes_is_test_and_a_part_of_train_is_validation(tmp_path, random_images, capsys):
    for number, image in enumerate(random_images(30)):
        save(tmp_path / f"faces/{'test' if number >= 20 else 'train'}/happy/{number:02d}.png", image)
    dataset = files.read(tmp_path / "faces", terminal=Terminal(is_primary=True))
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 18, "validation": 2, "test": 10}
    assert dataset.splits["test"].rows.tolist() == list(range(10))
    assert dataset.name == "faces, 10 % of train as validation, split seed 0"
    output = capsys.readouterr()
    assert "2 of its 20 training images" in output.err
    assert output.out == f"Decoding the images of {tmp_path / 'faces'} (30)\n"
    assert_valid(dataset)


def test_only_private_test_images_leave_validation_to_be_held_out_of_train(tmp_path, random_images):
    for number, image in enumerate(random_images(12)):
        usage, split = ("PrivateTest", "test") if number >= 10 else ("Training", "train")
        save(tmp_path / f"faces/{split}/sad/{usage}_{number:02d}.png", image)
    dataset = files.read(tmp_path / "faces")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 9, "validation": 1, "test": 2}


@pytest.mark.parametrize("name", ["validation", "val"])
def test_with_a_validation_folder_the_folders_alone_tell_the_splits(folder, random_images, name):
    image = random_images(1, seed=1)[0]
    save(folder / name / "happy/Training_9.png", image)
    dataset = files.read(folder)
    assert {split: dataset.splits[split].labels.tolist() for split in dataset.splits} == {
        "train": [0],
        "validation": [3],
        "test": [6, 4],
    }


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


BAD_FILES = {
    "unknown class": (
        "train/contempt/a.png",
        png_bytes(Image.new("L", (48, 48))),
        "train/contempt: not a class of FER",
    ),
    "numbered class": ("test/7/a.png", png_bytes(Image.new("L", (48, 48))), "test/7: not a class of FER"),
    "wrong size": (
        "train/sad/a.png",
        png_bytes(Image.new("L", (48, 47))),
        "a.png: 48 x 47 pixels; it should be a 48 x 48",
    ),
    "16 bits": (
        "train/sad/a.png",
        png_bytes(Image.new("I;16", (48, 48))),
        "a.png: pixels of Pillow's mode I;16; it should",
    ),
    "no image": ("train/sad/a.jpg", b"no image", "a.jpg: unreadable as an image ("),
    "empty": ("train/sad/a.jpg", b"", "a.jpg: unreadable as an image ("),
    "cut off": (
        "train/sad/a.png",
        png_bytes(Image.effect_noise((48, 48), 50))[:600],
        "a.png: unreadable as an image (",
    ),
    "another format": ("train/sad/a.png", b"8BPS" + bytes(40), "a.png: unreadable as an image ("),
    "outside of a class": ("train/a.png", b"", "train/a.png: an image outside of any class folder"),
    "folder in a class": ("train/sad/more/a.png", b"", "train/sad/more: a folder in a class folder"),
    "training image in test": (
        "test/sad/Training_7.png",
        b"",
        "Training_7.png: the name says Training, the folder says test",
    ),
    "test image in train": (
        "train/sad/PublicTest_7.png",
        b"",
        "PublicTest_7.png: the name says PublicTest, the folder says",
    ),
    "empty validation folder": ("validation/sad/a.txt", b"", "validation: no images in it"),
    "two folders of a split": ("Train/sad/a.png", b"", "a second folder for the train split, beside Train"),
}


@pytest.mark.parametrize(("name", "content", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_wrong_folder_is_named_with_the_file(folder, name, content, expected):
    write_bytes(folder / name, content)
    with pytest.raises(UserError) as error:
        files.read(folder)
    assert str(error.value).startswith(str(folder))
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_link_to_nowhere_is_named(folder):
    (folder / "train/angry/Training_5.png").symlink_to(folder / "gone.png")
    with pytest.raises(UserError, match=r"Training_5\.png"):
        files.read(folder)
    with pytest.raises(UserError, match=r"Training_5\.png: there is no such file"):
        files.identify(folder)


def test_a_folder_in_which_nothing_can_be_read_says_what_is_wanted(tmp_path, folder):
    for file in folder.rglob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"faces/train: no images in it; wanted are folders train/<class>/"):
        files.read(folder)
    (tmp_path / "empty/below").mkdir(parents=True)
    with pytest.raises(UserError, match=r"empty: nothing in it can be read; wanted is a FER-2013 csv"):
        files.read(tmp_path / "empty")


@settings()
@hypothesis.given(data=st.data(), suffix=st.sampled_from(["png", "jpg"]))
def test_a_damaged_image_reads_as_a_valid_data_set_or_is_a_user_error(folder, data, suffix):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(2304, dtype=np.uint16).astype(np.uint8).reshape(48, 48)).save(
        buffer, format="PNG" if suffix == "png" else "JPEG"
    )
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] = data.draw(st.integers(0, 255))
        else:
            del content[place : place + data.draw(st.integers(1, 400))]
            content += b"\0"
    path = folder / f"train/angry/Training_2.{suffix}"
    path.write_bytes(content)
    assert_valid_or_user_error(folder, path.name)
    path.unlink()


# Identity


def test_a_file_is_identified_by_its_content(tmp_path, four_rows):
    for name in ("a.csv", "b.csv", "c.csv"):
        (tmp_path / name).write_bytes(b"".join(four_rows))
    (tmp_path / "c.csv").write_bytes(b"".join(four_rows) + b"\n")
    a, b, c = (files.identify(tmp_path / name) for name in ("a.csv", "b.csv", "c.csv"))
    assert a == b != c


def test_a_folder_is_identified_by_its_images(folder, random_images):
    seen = [files.identify(folder)]
    # Ignored files are named in the dataset's note, and the note is stored with the prepared copy.
    (folder / "train/angry/notes.txt").write_text("no image")
    seen.append(files.identify(folder))
    image = folder / "train/angry/Training_1.png"
    os.utime(image, ns=(1, 1))
    seen.append(files.identify(folder))
    image.rename(folder / "train/angry/Training_2.png")
    seen.append(files.identify(folder))
    image = save(folder / "train/angry/Training_3.png", random_images(1)[0])
    seen.append(files.identify(folder))
    assert len(set(seen)) == len(seen)


def test_reading_does_not_import_tensorflow():
    root = pathlib.Path(fer_jax.__file__).parents[1]
    code = "import sys, fer_jax.data.files, fer_jax.data.load; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


# The real file


@pytest.mark.skipif("FER2013_CSV" not in os.environ, reason="FER2013_CSV does not say where the real fer2013.csv is")
def test_the_real_file_has_the_published_counts_and_statistics():
    dataset = files.read(os.environ["FER2013_CSV"])
    counts = {
        "train": [3995, 436, 4097, 7215, 4830, 3171, 4965],
        "validation": [467, 56, 496, 895, 653, 415, 607],
        "test": [491, 55, 528, 879, 594, 416, 626],
    }
    for name, split in dataset.splits.items():
        assert np.bincount(split.labels).tolist() == counts[name]
    pixels = np.concatenate([split.images.ravel() for split in dataset.splits.values()])
    frequencies = np.bincount(pixels, minlength=256) / len(pixels)
    grey = np.arange(256) / 255
    mean = (frequencies * grey).sum()
    assert mean == pytest.approx(0.5077, abs=3e-4)
    assert np.sqrt((frequencies * (grey - mean) ** 2).sum()) == pytest.approx(0.2551, abs=3e-4)


def test_decoding_a_folder_shows_a_bar_where_standard_error_is_a_terminal(tmp_path, random_images):
    for number, image in enumerate(random_images(30)):
        save(tmp_path / f"faces/{'test' if number >= 20 else 'train'}/happy/{number:02d}.png", image)
    program = (
        "import sys; from fer_jax.data import files; from fer_jax.system.terminal import Terminal; "
        "files.read(sys.argv[1], terminal=Terminal(is_primary=True))"
    )
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 200))
    command = [sys.executable, "-c", program, str(tmp_path / "faces")]
    child = subprocess.Popen(command, stderr=follower, stdout=subprocess.PIPE, text=True)
    os.close(follower)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    shown = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert f"Decoding the images of {tmp_path / 'faces'}" in shown
    assert "/30" in shown
    assert out == ""
