"""Answers as lines, JSON and rows."""

import io
import json

import pandas as pd

from fer_jax.faces.answers import Answer, CsvWriter, as_lines, write_json

FACES = [
    {
        "box": [10, 20, 30, 40],
        "emotions": {"happy": 0.75, "sad": 0.25},
        "emotion": "happy",
        "score": 0.75,
        "face_score": 0.9,
    },
    {
        "box": [1, 2, 3, 4],
        "emotions": {"happy": 0.1, "sad": 0.9},
        "emotion": "sad",
        "score": 0.9,
        "face_score": 0.6,
        "small": True,
    },
]


def test_a_line_says_the_expression_and_where_the_face_is():
    assert as_lines(Answer("a.jpg", FACES)) == [
        "a.jpg: happy 75% (face 30x40 at 10,20)",
        "a.jpg: sad 90% (face 3x4 at 1,2, small)",
    ]
    assert as_lines(Answer("a.jpg", [])) == ["a.jpg: no face"]
    assert as_lines(Answer("a.mp4", [], 3, 0.125)) == ["a.mp4 0.12 s: no face"]


def test_a_line_of_json_is_an_answer_and_of_a_video_it_has_frame_and_time():
    file = io.StringIO()
    write_json(Answer("a.jpg", FACES), file)
    write_json(Answer("a.mp4", [], 3, 0.125), file)
    first, second = map(json.loads, file.getvalue().splitlines())
    assert first == {"file": "a.jpg", "faces": FACES}
    assert second == {"file": "a.mp4", "frame": 3, "time": 0.125, "faces": []}


def test_pandas_reads_a_row_for_each_face():
    file = io.StringIO()
    writer = CsvWriter(file, ["happy", "sad"])
    for answer in (Answer("a, b.jpg", FACES), Answer("c.jpg", []), Answer("d.mp4", FACES[:1], 7, 0.5)):
        writer.write(answer)
    table = pd.read_csv(io.StringIO(file.getvalue()))
    assert table["file"].tolist() == ["a, b.jpg", "a, b.jpg", "d.mp4"]
    assert table["face"].tolist() == [0, 1, 0]
    assert table["frame"].isna().tolist() == [True, True, False]
    assert table[["x", "y", "width", "height"]].iloc[0].tolist() == [10, 20, 30, 40]
    assert table[["happy", "sad", "score", "face_score"]].iloc[1].tolist() == [0.1, 0.9, 0.9, 0.6]
    assert table["emotion"].tolist() == ["happy", "sad", "happy"]
