"""Reads FER-2013 as one csv file, plain or gzipped: fer2013.csv, icml_face_data.csv or the competition's train.csv.

The format: a header, then a row an image. `emotion` is 0 to 6 in the order of CLASS_NAMES, `pixels` is 2,304 grey
values 0 to 255 with blanks between them, row by row from the top left, and `Usage` is Training, PublicTest or
PrivateTest. fer2013.csv has the columns `emotion,pixels,Usage`, icml_face_data.csv `emotion, Usage, pixels`, and the
competition's train.csv has no Usage (https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge/data).
"""

import contextlib
import csv
import gzip
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from fer_jax.data.dataset import CLASS_NAMES, IMAGE_SHAPE
from fer_jax.errors import UserError

SPLIT_OF_USAGE = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}

_NUM_PIXELS = math.prod(IMAGE_SHAPE)
_LABELS = {str(label).encode(): label for label in range(len(CLASS_NAMES))}
_SPLITS = {usage.encode(): split for usage, split in SPLIT_OF_USAGE.items()}
# The longest real row has under 10,000 bytes; the bound keeps a file that is no csv from being taken for one long line.
_LONGEST_LINE = 1 << 16
# Rows parsed at once: fewer take longer for the calls, many more don't fit into a core's cache.
_ROWS_AT_ONCE = 64
_WANTED = "a FER-2013 csv starts with the header emotion,pixels,Usage"


def read(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the images, labels and splits of a FER-2013 csv, in the order of its rows.

    images: uint8 [N, 48, 48, 1]; labels: int32 [N]; splits: str [N], of SPLITS, all of them 'train' where the file has
    no Usage column. Blank lines are passed over. Raises UserError, naming file and row (the header is row 1), for a
    file in another format or one that is cut off, for a row that isn't as the format says, and for a file with a
    Usage column but without Training or PublicTest rows.
    """
    images, labels, splits, fields = [], [], [], []
    with _open(path) as file:
        lines = _lines(path, file)
        columns, num_columns = _columns(path, next(lines, (1, b""))[1])
        emotion, pixels, usage = columns["emotion"], columns["pixels"], columns.get("usage")
        waiting = []  # (row, its line's last byte) of each of `fields`
        for row, line in lines:
            values = _split(line)
            if values == [b""]:
                continue
            if values is None or len(values) != num_columns:
                found = "quotes that csv doesn't allow" if values is None else f"{len(values)} fields"
                raise _row_error(path, row, line, f"{found}; the header names {num_columns}")
            label = _LABELS.get(values[emotion].strip())
            if label is None:
                expected = f"a whole number from 0 ({CLASS_NAMES[0]}) to {len(CLASS_NAMES) - 1} ({CLASS_NAMES[-1]})"
                raise _row_error(path, row, line, f"emotion is {_show(values[emotion])}; it should be {expected}")
            split = "train" if usage is None else _SPLITS.get(values[usage].strip())
            if split is None:
                expected = "Training, PublicTest or PrivateTest"
                raise _row_error(path, row, line, f"Usage is {_show(values[usage])}; it should be {expected}")
            labels.append(label)
            splits.append(split)
            fields.append(values[pixels])
            waiting.append((row, line[-1:]))
            # Row by row the checks are cheap; the pixels are parsed many rows at a time, which is what takes the time.
            if len(fields) == _ROWS_AT_ONCE:
                images.append(_parse_rows(path, fields, waiting))
                fields, waiting = [], []
        if fields:
            images.append(_parse_rows(path, fields, waiting))
    if not labels:
        raise UserError(f"{path}: there are no rows after the header")
    if usage is not None:
        for name, split in SPLIT_OF_USAGE.items():
            if split != "test" and split not in splits:
                raise UserError(f"{path}: no row has Usage {name}, the {split} split; is the file complete?")
    return np.concatenate(images).reshape(-1, *IMAGE_SHAPE), np.array(labels, np.int32), np.array(splits)


def parse_pixels(fields: Sequence[bytes]) -> np.ndarray:
    """Returns the grey values of `fields`, each 2,304 decimal numbers with blanks between them: uint8 [N, 2304].

    Works on all bytes at once: the value of the number that ends at a byte is that digit plus 10 and 100 times the
    digits before it. Raises ValueError where a field has another number of values, a value over 255 or of more than
    three digits, or any other character; `complaint` says which.
    """
    # Three blanks in front so that each digit has bytes before it; one behind so that the last number ends.
    text = np.frombuffer(b"   %b " % b" ".join(fields), np.uint8)
    digits = text - np.uint8(ord("0"))  # what isn't a digit wraps around to 10 or more
    is_digit = digits < 10
    if np.count_nonzero(is_digit) + np.count_nonzero(text == ord(" ")) != len(text):
        raise ValueError("a character that is neither digit nor blank")
    third, second, first, after = is_digit[:-3], is_digit[1:-2], is_digit[2:-1], is_digit[3:]  # seen from the right
    if (third & second & first & after).any():
        raise ValueError("a value of more than three digits")
    ends = np.flatnonzero(first > after)
    # The total must be right, and so must each field's own: its last value, so counted, lies within it.
    counts = np.searchsorted(ends, np.cumsum([len(field) + 1 for field in fields]))
    if len(ends) != _NUM_PIXELS * len(fields) or (np.diff(counts, prepend=0) != _NUM_PIXELS).any():
        raise ValueError("a field with another number of values")
    digits *= is_digit
    values = digits[2:-1] + digits[1:-2] * np.uint16(10)
    values += digits[:-3] * second * np.uint16(100)
    values = values[ends]
    if values.max() > 255:
        raise ValueError("a value over 255")
    return values.astype(np.uint8).reshape(len(fields), _NUM_PIXELS)


def complaint(field: bytes) -> str | None:
    """Says what keeps `field` from being an image's pixels, or None where nothing does."""
    numbers = [number for number in field.split(b" ") if number]
    for position, number in enumerate(numbers, 1):
        if not number.isdigit() or len(number) > 3 or int(number) > 255:
            return f"pixel {position} is {_show(number)}; it should be a whole number from 0 to 255"
    if len(numbers) != _NUM_PIXELS:
        return f"{len(numbers)} pixels; an image has {_NUM_PIXELS} (48 x 48)"
    return None


def _parse_rows(path: str | os.PathLike, fields: list[bytes], rows: list[tuple[int, bytes]]) -> np.ndarray:
    try:
        return parse_pixels(fields)
    except ValueError:
        # The fast parser only knows that something is wrong; the slow one says which row and pixel.
        for field, (row, line_end) in zip(fields, rows, strict=True):
            if found := complaint(field):
                raise _row_error(path, row, line_end, found) from None
        raise


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a csv for reading, through gzip where the content (not the name) says so."""
    with open(path, "rb", buffering=1 << 20) as file:
        if file.peek(2)[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked
        else:
            yield file


def _lines(path: str | os.PathLike, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Returns each line with its number, from 1."""
    row = 1
    while True:
        try:
            line = file.readline(_LONGEST_LINE)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            where = f"{path}: row {row}: the compressed file is damaged or cut off here"
            raise UserError(f"{where} ({error}); get it again") from error
        if not line:
            return
        # The header may be long without being wrong, and is judged in _columns.
        if row > 1 and len(line) == _LONGEST_LINE:
            raise UserError(f"{path}: row {row}: over {_LONGEST_LINE - 1} bytes long; an image's row has under 10,000")
        yield row, line
        row += 1


def _columns(path: str | os.PathLike, header: bytes) -> tuple[dict[str, int], int]:
    """Returns the position of each column in the header, by lower-case name, and how many columns there are."""
    if not header:
        raise UserError(f"{path}: the file is empty; {_WANTED}")
    # People download archives and give them as they are.
    if header.startswith(b"PK\x03\x04"):
        raise UserError(f"{path}: a zip archive; unpack it and give the csv that is in it")
    if header[257:262] == b"ustar":
        raise UserError(f"{path}: a tar archive; unpack it and give the csv that is in it")
    if len(header) == _LONGEST_LINE:
        raise UserError(f"{path}: row 1: over {_LONGEST_LINE - 1} bytes without a line end; {_WANTED}")
    # icml_face_data.csv has blanks in its header; Excel puts a byte-order mark in front.
    names = [name.strip().lower() for name in _split(header.removeprefix(b"\xef\xbb\xbf")) or []]
    if b"pixels" in names and b"emotion" not in names:
        raise UserError(
            f"{path}: row 1: pixels but no emotion column: this is the competition's unlabelled test.csv, which cannot"
            " be trained or evaluated on; give fer2013.csv, icml_face_data.csv or the competition's train.csv"
        )
    columns = {}
    for name in ("emotion", "pixels", "usage"):
        if names.count(name.encode()) > 1:
            raise UserError(f"{path}: row 1: more than one column is called {name}; {_WANTED}")
        if name.encode() in names:
            columns[name] = names.index(name.encode())
        elif name != "usage":
            raise UserError(f"{path}: row 1: no column is called {name}, the row is {_show(header)}; {_WANTED}")
    if "usage" not in columns and len(names) > 2:
        # One of the others could be Usage by another name, and without it test images would be trained on.
        raise UserError(f"{path}: row 1: no column is called Usage, the row is {_show(header)}; {_WANTED}")
    return columns, len(names)


def _split(line: bytes) -> list[bytes] | None:
    """Returns the fields of a line of csv, or None where its quotes aren't csv's."""
    line = line.rstrip(b"\r\n")
    if b'"' not in line:
        return line.strip().split(b",")
    try:
        # Latin-1 takes and gives back every byte as it is.
        values = next(csv.reader([line.decode("latin-1")], skipinitialspace=True, strict=True))
    except csv.Error:
        return None
    return [value.encode("latin-1") for value in values]


def _row_error(path: str | os.PathLike, row: int, line: bytes, found: str) -> UserError:
    hint = "" if line.endswith(b"\n") else " (the file ends in this row: it may be cut off)"
    return UserError(f"{path}: row {row}: {found}{hint}")


def _show(value: bytes) -> str:
    """Returns `value` in quotes, on one line and not too long of it."""
    value = value.strip(b" \r\n")
    return repr(value if len(value) <= 40 else value[:40] + b"...").removeprefix("b")
