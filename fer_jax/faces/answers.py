"""Formats the faces found in pictures as lines of text, JSON lines and CSV rows."""

import csv
import json
from collections.abc import Sequence
from typing import IO, Any, NamedTuple


class Answer(NamedTuple):
    """The faces of a picture or a video frame. file: the source's name. frame, time (seconds): None for a picture."""

    file: str
    faces: list[dict[str, Any]]
    frame: int | None = None
    time: float | None = None


def as_text(name: str) -> str:
    """Returns a file's name with the bytes escaped that are no text, which can't be printed."""
    return name.encode(errors="backslashreplace").decode()


def as_lines(answer: Answer) -> list[str]:
    """Returns one line per face, or a single line that says there is no face."""
    where = as_text(answer.file) + ("" if answer.time is None else f" {answer.time:.2f} s")
    if not answer.faces:
        return [f"{where}: no face"]
    lines = []
    for face in answer.faces:
        x, y, width, height = face["box"]
        small = ", small" if face.get("small") else ""
        lines.append(f"{where}: {face['emotion']} {face['score']:.0%} (face {width}x{height} at {x},{y}{small})")
    return lines


def write_json(answer: Answer, file: IO[str]) -> None:
    """Writes an answer as one line of JSON: file, frame and time (for videos only), and faces."""
    of_video = {} if answer.frame is None else {"frame": answer.frame, "time": answer.time}
    file.write(json.dumps({"file": answer.file} | of_video | {"faces": answer.faces}, allow_nan=False) + "\n")
    # Flushed, so that a program that reads the answers of a camera gets each one at once.
    file.flush()


class CsvWriter:
    """Writes a CSV table, readable by pandas, with one row per face; a picture without a face has no row."""

    def __init__(self, file: IO[str], class_names: Sequence[str]):
        self._file, self._class_names = file, class_names
        self._writer = csv.writer(file)
        head = ["file", "frame", "time", "face", "x", "y", "width", "height", "emotion", "score"]
        self._writer.writerow([*head, *class_names, "face_score"])

    def write(self, answer: Answer) -> None:
        for number, face in enumerate(answer.faces):
            probabilities = [face["emotions"][name] for name in self._class_names]
            row = [as_text(answer.file), answer.frame, answer.time, number, *face["box"], face["emotion"]]
            self._writer.writerow([*row, face["score"], *probabilities, face["face_score"]])
        self._file.flush()
