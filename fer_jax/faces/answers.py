"""What was found in pictures, as lines for people, JSON lines and rows of a table."""

import csv
import json
from collections.abc import Sequence
from typing import IO, Any, NamedTuple


class Answer(NamedTuple):
    """The faces of a picture or of a frame. file: its name. frame, time (in seconds): None of a picture."""

    file: str
    faces: list[dict[str, Any]]
    frame: int | None = None
    time: float | None = None


def as_lines(answer: Answer) -> list[str]:
    """Returns a line for each face, or one that says there is none."""
    where = answer.file if answer.time is None else f"{answer.file} {answer.time:.2f} s"
    if not answer.faces:
        return [f"{where}: no face"]
    lines = []
    for face in answer.faces:
        x, y, width, height = face["box"]
        small = ", small" if face.get("small") else ""
        lines.append(f"{where}: {face['emotion']} {face['score']:.0%} (face {width}x{height} at {x},{y}{small})")
    return lines


def write_json(answer: Answer, file: IO[str]) -> None:
    """Writes an answer as one line of JSON: file, of a video frame and time, and faces."""
    of_video = {} if answer.frame is None else {"frame": answer.frame, "time": answer.time}
    file.write(json.dumps({"file": answer.file} | of_video | {"faces": answer.faces}, allow_nan=False) + "\n")
    # Whoever reads along, of a camera, gets it now.
    file.flush()


class CsvWriter:
    """Writes one row a face, which pandas reads as it is: no face, no row."""

    def __init__(self, file: IO[str], class_names: Sequence[str]):
        self._file, self._class_names = file, class_names
        self._writer = csv.writer(file)
        head = ["file", "frame", "time", "face", "x", "y", "width", "height", "emotion", "score"]
        self._writer.writerow([*head, *class_names, "face_score"])

    def write(self, answer: Answer) -> None:
        for number, face in enumerate(answer.faces):
            probabilities = [face["emotions"][name] for name in self._class_names]
            row = [answer.file, answer.frame, answer.time, number, *face["box"], face["emotion"], face["score"]]
            self._writer.writerow([*row, *probabilities, face["face_score"]])
        self._file.flush()
