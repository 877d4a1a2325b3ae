"""Reads FER-2013 from one csv file, plain or gzipped: fer2013.csv, icml_face_data.csv or the competition's train.csv.

The file has a header, then one row per image. `emotion` is 0 to 6 in the order of CLASS_NAMES, `pixels` is the grey
values 0 to 255 of a square image (2,304 of them in FER-2013), separated by blanks, row by row from the top left, and
`Usage` is Training, PublicTest or PrivateTest. Columns and usages may have other common names (see names.py).
fer2013.csv has the columns `emotion,pixels,Usage`, icml_face_data.csv `emotion, Usage, pixels`, and the
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

from fer_jax.data import names
from fer_jax.data.dataset import CLASS_NAMES, UNSPLIT
from fer_jax.errors import UserError

_LABELS = {str(label).encode(): label for label in range(len(CLASS_NAMES))}
# Twice the length of a row of 512 x 512 pixels, the largest dataset.image_size. The limit keeps a file that isn't a csv
# from being read as one long line.
_LONGEST_LINE = 1 << 21
# Bytes of rows parsed at once, 64 rows of FER-2013. Fewer rows take longer because of more calls; many more don't fit
# into a core's cache. Parsing takes some ten times as much memory.
_BYTES_AT_ONCE = 1 << 19
_WANTED = "a FER-2013 csv starts with the header emotion,pixels,Usage"


def read(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the images, labels and splits of a FER-2013 csv, in the order of its rows.

    images: uint8 [N, side, side, 1]; labels: int32 [N]; splits: str [N], names from SPLITS, or all UNSPLIT if the file
    has no Usage column. Blank lines are skipped. Raises UserError, naming the file and the row (the header is row 1),
    if the file has another format or is cut off, or if a row doesn't follow the format.
    """
    images, labels, splits, fields, split_of = [], [], [], [], {}
    num_pixels, num_bytes = None, 0
    with _open(path) as file:
        lines = _lines(path, file)
        columns, num_columns = _columns(path, next(lines, (1, b""))[1])
        emotion, pixels, usage = columns["emotion"], columns["pixels"], columns.get("usage")
        waiting = []  # (row number, last byte of its line) for each of `fields`
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
            told = b"" if usage is None else values[usage]
            if told not in split_of:
                split_of[told] = UNSPLIT if usage is None else names.split_of(told.decode("latin-1"))
            split = split_of[told]
            if split is None:
                expected = "Training, PublicTest or PrivateTest"
                raise _row_error(path, row, line, f"Usage is {_show(values[usage])}; it should be {expected}")
            if num_pixels is None:
                num_pixels = _square(values[pixels])
            labels.append(label)
            splits.append(split)
            fields.append(values[pixels])
            num_bytes += len(line)
            waiting.append((row, line[-1:]))
            # The checks are cheap row by row; parsing the pixels takes the time, so it handles many rows at once.
            if num_bytes >= _BYTES_AT_ONCE:
                images.append(_parse_rows(path, fields, num_pixels, waiting))
                fields, waiting, num_bytes = [], [], 0
        if fields:
            images.append(_parse_rows(path, fields, num_pixels, waiting))
    if not labels:
        raise UserError(f"{path}: there are no rows after the header")
    side = math.isqrt(num_pixels)
    return np.concatenate(images).reshape(-1, side, side, 1), np.array(labels, np.int32), np.array(splits)


def has_labels(path: str | os.PathLike) -> bool:
    """Returns whether a csv has FER-2013's columns; the competition's test.csv and example_submission.csv don't."""
    try:
        with _open(path) as file:
            _columns(path, next(_lines(path, file), (1, b""))[1])
    except UserError:
        return False
    return True


def _square(field: bytes) -> int:
    """Returns the pixels per image of a file, counted in its first image's `field`; 2,304 if the count is invalid."""
    count = len(field.split())
    # An invalid count is a mistake in that row, which `complaint` then reports.
    return count if count >= 64 and math.isqrt(count) ** 2 == count else 48 * 48


def parse_pixels(fields: Sequence[bytes], num_pixels: int) -> np.ndarray:
    """Returns the grey values of `fields`, each `num_pixels` decimal numbers with blanks: uint8 [N, num_pixels].

    Works on all bytes at once: the value of the number that ends at a byte is that digit plus 10 and 100 times the
    digits before it. Raises ValueError if a field has another number of values, a value over 255 or of more than three
    digits, or any other character; `complaint` finds out which.
    """
    # Three blanks in front give each digit bytes before it; one at the end terminates the last number.
    text = np.frombuffer(b"   %b " % b" ".join(fields), np.uint8)
    digits = text - np.uint8(ord("0"))  # bytes that aren't digits become 10 or more, since uint8 wraps around
    is_digit = digits < 10
    if np.count_nonzero(is_digit) + np.count_nonzero(text == ord(" ")) != len(text):
        raise ValueError("a character that is neither digit nor blank")
    third, second, first, after = is_digit[:-3], is_digit[1:-2], is_digit[2:-1], is_digit[3:]  # from the last digit
    if (third & second & first & after).any():
        raise ValueError("a value of more than three digits")
    ends = np.flatnonzero(first > after)
    # Both the total and the number of values in each field must be right; a value counts in the field where it ends.
    counts = np.searchsorted(ends, np.cumsum([len(field) + 1 for field in fields]))
    if len(ends) != num_pixels * len(fields) or (np.diff(counts, prepend=0) != num_pixels).any():
        raise ValueError("a field with another number of values")
    digits *= is_digit
    values = digits[2:-1] + digits[1:-2] * np.uint16(10)
    values += digits[:-3] * second * np.uint16(100)
    values = values[ends]
    if values.max() > 255:
        raise ValueError("a value over 255")
    return values.astype(np.uint8).reshape(len(fields), num_pixels)


def complaint(field: bytes, num_pixels: int) -> str | None:
    """Returns what is wrong with `field` as the pixels of an image, or None if nothing is."""
    numbers = [number for number in field.split(b" ") if number]
    for position, number in enumerate(numbers, 1):
        if not number.isdigit() or len(number) > 3 or int(number) > 255:
            return f"pixel {position} is {_show(number)}; it should be a whole number from 0 to 255"
    if len(numbers) != num_pixels:
        side = math.isqrt(num_pixels)
        return f"{len(numbers)} pixels; an image has {num_pixels} ({side} x {side})"
    return None


def _parse_rows(
    path: str | os.PathLike, fields: list[bytes], num_pixels: int, rows: list[tuple[int, bytes]]
) -> np.ndarray:
    try:
        return parse_pixels(fields, num_pixels)
    except ValueError:
        # The fast parser only finds that something is wrong; the slow one finds the row and the pixel.
        for field, (row, line_end) in zip(fields, rows, strict=True):
            if found := complaint(field, num_pixels):
                raise _row_error(path, row, line_end, found) from None
        raise


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a csv for reading and decompresses it if its content, not its name, is that of gzip."""
    with open(path, "rb", buffering=1 << 20) as file:
        if file.peek(2)[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked
        else:
            yield file


def _lines(path: str | os.PathLike, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yields the number of each line, from 1, and the line."""
    row = 1
    while True:
        try:
            line = file.readline(_LONGEST_LINE)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            where = f"{path}: row {row}: the compressed file is damaged or cut off here"
            raise UserError(f"{where} ({error}); get it again") from error
        if not line:
            return
        # A header of this length is refused in _columns, which first recognises archives.
        if row > 1 and len(line) == _LONGEST_LINE:
            raise UserError(
                f"{path}: row {row}: over {_LONGEST_LINE - 1} bytes long; an image's row has under 10,000 in FER-2013"
            )
        yield row, line
        row += 1


def _columns(path: str | os.PathLike, header: bytes) -> tuple[dict[str, int], int]:
    """Returns the positions of the columns emotion, pixels and, if present, usage, and the number of columns."""
    if not header:
        raise UserError(f"{path}: the file is empty; {_WANTED}")
    # Downloaded archives are often given without being unpacked.
    if header.startswith(b"PK\x03\x04"):
        raise UserError(f"{path}: a zip archive; unpack it and give the csv that is in it")
    if header[257:262] == b"ustar":
        raise UserError(f"{path}: a tar archive; unpack it and give the csv that is in it")
    if len(header) == _LONGEST_LINE:
        raise UserError(f"{path}: row 1: over {_LONGEST_LINE - 1} bytes without a line end; {_WANTED}")
    # icml_face_data.csv has blanks in its header; Excel writes a byte-order mark at the start.
    found = [name.decode("latin-1") for name in _split(header.removeprefix(b"\xef\xbb\xbf")) or []]
    columns, unknown = {}, []
    for position, name in enumerate(found):
        column = names.column_of(name)
        if column is None:
            unknown.append(name.strip())
        elif column in columns:
            other = found[columns[column]].strip()
            raise UserError(f"{path}: row 1: {other} and {name.strip()} are both called like {column}; {_WANTED}")
        else:
            columns[column] = position
    if "pixels" in columns and "emotion" not in columns and len(found) == 1:
        raise UserError(
            f"{path}: row 1: pixels but no emotion column: this is the competition's unlabelled test.csv, which cannot"
            " be trained or evaluated on; give fer2013.csv, icml_face_data.csv or the competition's train.csv"
        )
    for column in ("emotion", "pixels"):
        if column not in columns:
            raise UserError(f"{path}: row 1: no column is called {column}, the row is {_show(header)}; {_WANTED}")
    if "usage" not in columns and unknown:
        # An unknown column may be Usage under another name, and without it test images would be trained on.
        raise UserError(f"{path}: row 1: no column is called Usage, the row is {_show(header)}; {_WANTED}")
    return columns, len(found)


def _split(line: bytes) -> list[bytes] | None:
    """Returns the fields of a line of csv, or None if its quotes are not valid in csv."""
    line = line.rstrip(b"\r\n")
    if b'"' not in line:
        return line.strip().split(b",")
    # csv's default limit is below the pixels of a large image. It is global to the process, so it is restored below.
    limit = csv.field_size_limit(_LONGEST_LINE)
    try:
        # Latin-1 decodes and encodes every byte unchanged.
        values = next(csv.reader([line.decode("latin-1")], skipinitialspace=True, strict=True))
    except csv.Error:
        return None
    finally:
        csv.field_size_limit(limit)
    return [value.encode("latin-1") for value in values]


def _row_error(path: str | os.PathLike, row: int, line: bytes, found: str) -> UserError:
    hint = "" if line.endswith(b"\n") else " (the file ends in this row: it may be cut off)"
    return UserError(f"{path}: row {row}: {found}{hint}")


def _show(value: bytes) -> str:
    """Returns `value` in quotes, on one line and cut to 40 bytes."""
    value = value.strip(b" \r\n")
    return repr(value if len(value) <= 40 else value[:40] + b"...").removeprefix("b")
