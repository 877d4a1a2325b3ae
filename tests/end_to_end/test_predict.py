"""The command predict on pictures, folders and videos, with a small network."""

import io
import json
import os
import pathlib
import signal
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_jax import predict as predict_command
from fer_jax.data.dataset import CLASS_NAMES
from fer_jax.errors import UserError
from fer_jax.faces import overlay
from fer_jax.inference import explanation
from fer_jax.inference.trained_model import TrainedModel
from tests.support import commands

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
PHOTOGRAPH = FIXTURES / "astronaut.jpg"


def predict(*words, faces: str = "all", explain: str | None = None, **asked) -> None:
    defaults = {"weights": str(FIXTURES / "run_0.1"), "checkpoint": None, "detector": "blazeface"}
    defaults |= {"json": None, "csv": None, "save": None, "every": 1, "raw": False, "require_face": False}
    options = {"faces": faces, "small_faces": False, "explain": explain}
    predict_command.predict([str(word) for word in words], options=options, **defaults | asked)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder of 18 photographs, a picture without a face, a damaged one and an animation of three frames.

    Nine of the photographs are in a subfolder.
    """
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    photograph = Image.open(PHOTOGRAPH)
    for number in range(9):
        photograph.save(folder / f"{number}.png")
        photograph.save(folder / "more" / f"{number}.png")
    Image.new("RGB", (100, 80), (90, 120, 90)).save(folder / "lawn.jpg")
    (folder / "damaged.jpg").write_bytes(PHOTOGRAPH.read_bytes()[:1500])
    # The frames differ, since equal frames would be stored as one.
    dotted = [photograph.copy() for _ in range(3)]
    for number, image in enumerate(dotted):
        image.paste((255, 255, 255), (0, 0, 5 * number + 1, 5))
    dotted[0].save(folder / "three.gif", save_all=True, append_images=dotted[1:], duration=200)
    return folder


def test_a_photograph_is_a_line_and_a_picture_without_a_face_one_that_says_so(folder, capsys):
    predict(PHOTOGRAPH, folder / "lawn.jpg")
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first.startswith(f"{PHOTOGRAPH}: ")
    assert "% (face 9" in first
    assert second == f"{folder / 'lawn.jpg'}: no face"
    assert "2 pictures, 1 faces, " in err


def test_a_folder_is_answered_in_order_in_every_form_and_what_can_not_be_read_is_named(
    folder, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "drawn"
    # Without OpenCV everything is done, except that the animation isn't saved.
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"1 files are not saved: .*three\.gif.*OpenCV"):
        predict(folder, json=str(tmp_path / "f.json"), csv=str(tmp_path / "f.csv"), save=str(out), explain="layercam")
    printed, err = capsys.readouterr()
    assert "22 pictures, 21 faces, " in err
    assert "1 files can't be read: " in err
    assert "damaged.jpg" in err
    answers = [json.loads(line) for line in (tmp_path / "f.json").read_text().splitlines()]
    files = [pathlib.Path(answer["file"]).relative_to(folder).as_posix() for answer in answers]
    assert files == [
        *(f"{n}.png" for n in range(9)),
        "lawn.jpg",
        *["three.gif"] * 3,
        *(f"more/{n}.png" for n in range(9)),
    ]
    assert [answer.get("time") for answer in answers if "frame" in answer] == [0.0, 0.2, 0.4]
    assert len(printed.splitlines()) == 22
    table = pd.read_csv(tmp_path / "f.csv")
    assert len(table) == 21
    np.testing.assert_allclose(table[list(CLASS_NAMES)].sum(axis=1), 1, rtol=1e-5)
    # The same picture gets the same answer all eighteen times.
    assert np.ptp(table["score"][table["time"].isna()]) < 1e-4
    saved = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.jpg"))
    assert saved == sorted(
        [*(f"{n}_fer.jpg" for n in range(9)), "lawn_fer.jpg", *(f"more/{n}_fer.jpg" for n in range(9))]
    )
    with Image.open(out / "0_fer.jpg") as drawn, Image.open(PHOTOGRAPH) as before:
        assert drawn.height > before.height  # by the strip of explanations
        assert drawn.width == before.width


def test_standard_output_is_json_alone_where_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PHOTOGRAPH.read_bytes())))
    predict("-", json="-")
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert answer["file"] == "-"
    assert len(answer["faces"]) == 1


def test_two_pictures_of_one_name_are_both_saved(tmp_path, capsys):
    with Image.open(PHOTOGRAPH) as image:
        image.save(tmp_path / "a.png")
        image.save(tmp_path / "a.bmp")
    predict(tmp_path / "a.png", tmp_path / "a.bmp", save=str(tmp_path / "out"), faces="none")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_bmp_fer.jpg", "a_fer.jpg"]


def test_a_name_whose_bytes_are_no_text_is_escaped(tmp_path, capsys):
    name = os.fsdecode(b"f\xe9.jpg")
    (tmp_path / name).write_bytes(PHOTOGRAPH.read_bytes())
    predict(tmp_path / name, csv=str(tmp_path / "f.csv"), json=str(tmp_path / "f.json"))
    escaped = str(tmp_path / "f\\udce9.jpg")
    assert capsys.readouterr().out.startswith(f"{escaped}: ")
    assert pd.read_csv(tmp_path / "f.csv")["file"].tolist() == [escaped]
    assert json.loads((tmp_path / "f.json").read_text())["file"] == str(tmp_path / name)


@pytest.mark.parametrize("asked", [[], ["--json=-"], ["--csv=-"]])
def test_it_ends_without_a_word_when_nobody_reads_the_answers_any_more(folder, tmp_path, asked):
    weights = f"--weights={FIXTURES / 'run_0.1'}"
    process = commands.start(commands.main("predict", str(folder), weights, f"--out={tmp_path}", "--save", *asked))
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(120) == 0, err
    assert err == ""
    # The command notices at the first of the 22 answers that nobody reads it, and saves no picture.
    assert list(tmp_path.rglob("*.jpg")) == []


def test_a_named_pipe_that_nobody_reads_any_more_is_the_end_too(folder, tmp_path):
    pipe = tmp_path / "answers.json"
    os.mkfifo(pipe)
    weights = f"--weights={FIXTURES / 'run_0.1'}"
    process = commands.start(commands.main("predict", str(folder), weights, f"--json={pipe}"))
    with open(pipe):  # blocks until the command opens the pipe
        pass
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    assert len(out.splitlines()) == 1


@pytest.mark.video
@pytest.mark.parametrize(
    ("number", "status", "is_read"),
    [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, True), (signal.SIGHUP, 129, True)],
)
def test_a_signal_ends_a_video_whose_saved_part_is_whole(tmp_path, number, status, is_read):
    import cv2

    source, written = tmp_path / "long.avi", tmp_path / "answers.json"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 64))
    for frame in range(5000):
        writer.write(np.full((64, 64, 3), frame % 250, np.uint8))
    writer.release()
    options = ["--detector=none", "--faces=none", f"--weights={FIXTURES / 'run_0.1'}", f"--json={written}"]
    process = commands.start(commands.main("predict", str(source), *options, "--save", f"--out={tmp_path}"))
    for _ in range(1200):
        if written.exists() and len(written.read_text().splitlines()) > 40:
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    if is_read:
        _, err = process.communicate(timeout=120)
    else:
        # Ctrl-C ends both sides of a pipe.
        process.stdout.close()
        err = process.stderr.read()
    assert process.wait(120) == status, err
    count = len(written.read_text().splitlines())
    # OpenCV may print lines of its own before it.
    assert err.splitlines()[-1].startswith(f"{count:,} pictures, {count:,} faces, "), err
    assert "Traceback" not in err
    assert 40 < count < 5000
    # The index, which a player reads first, is at the end of the file.
    capture = cv2.VideoCapture(str(tmp_path / "long_fer.webm"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == count
    assert sum(capture.read()[0] for _ in range(count + 1)) == count
    capture.release()


@pytest.mark.video
def test_a_video_is_read_and_written(folder, tmp_path, capsys):
    predict(folder / "three.gif", save=str(tmp_path))
    capsys.readouterr()
    (video,) = tmp_path.glob("*.webm")
    assert video.name == "three_fer.webm"
    predict(video, every=2, json="-", raw=True)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["frame"] for answer in answers] == [0, 2]
    assert answers[1]["time"] == pytest.approx(0.4, abs=0.02)


def test_in_a_video_the_expression_that_is_said_is_the_one_that_is_explained(tmp_path):
    shades = [np.full((48, 48, 1), shade, np.uint8) for shade in (0, 128)]
    first, second = (Image.fromarray(shade[..., 0]) for shade in shades)
    first.save(tmp_path / "film.webp", save_all=True, append_images=[second], duration=40, lossless=True)
    written = tmp_path / "answers.json"
    said = {}
    for raw in (True, False):
        predict(tmp_path / "film.webp", faces="none", explain="layercam", json=str(written), raw=raw)
        said[raw] = [json.loads(line)["faces"][0] for line in written.read_text().splitlines()]
    expressions = {raw: [face["emotion"] for face in faces] for raw, faces in said.items()}
    assert expressions[True][0] != expressions[True][1]  # otherwise there is nothing to test
    assert expressions[False] == [expressions[True][0]] * 2
    trained = TrainedModel.load(FIXTURES / "run_0.1")
    for raw, faces in said.items():
        classes = [CLASS_NAMES.index(name) for name in expressions[raw]]
        maps = explanation.explain(trained, np.stack(shades), classes)
        drawn = [overlay.face_picture(*each) for each in zip(shades, maps, strict=True)]
        assert [face["explanation"] for face in faces] == list(map(overlay.as_data_url, drawn))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"json": "a.jpg"}, "--json is a.jpg, which is named as a picture"),
        ({"csv": "no_suffix"}, "--csv is no_suffix, which is to be looked at itself"),
        ({"json": "answers", "csv": "./answers"}, "--json and --csv are both answers"),
    ],
)
def test_no_picture_and_no_answers_are_written_over(tmp_path, monkeypatch, asked, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "no_suffix"):
        (tmp_path / name).write_bytes(PHOTOGRAPH.read_bytes())
    # The command is refused before it loads the network, whose file doesn't exist.
    with pytest.raises(UserError, match=message):
        predict("no_suffix", weights="nothing.safetensors", **asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "no_suffix"]
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {PHOTOGRAPH.read_bytes()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "which picture"),
        ({"words": ["gone.jpg"]}, "gone.jpg is not there"),
        ({"words": [PHOTOGRAPH], "json": "-", "csv": "-"}, "both want standard output"),
        ({"words": [__file__]}, "none of the files can be read"),
        ({"words": [PHOTOGRAPH], "weights": "nothing.safetensors"}, "nothing.safetensors is not there"),
        ({"words": [PHOTOGRAPH], "explain": "lime"}, "^there is no explanation 'lime'"),
        ({"words": ["clip.mp4"], "explain": ""}, "^there is no explanation ''"),
        (
            {"words": [PHOTOGRAPH], "explain": "layercam", "csv": "-"},
            "--explain=layercam goes with --save, .* or --json",
        ),
        ({"words": [PHOTOGRAPH], "detector": "haar"}, "haar"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        predict(*arguments.pop("words", []), **arguments)
    assert "\n" not in str(error.value)


def test_a_misspelt_explanation_of_a_video_leaves_earlier_answers_as_they_are(tmp_path):
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "answers.json").write_text("{}")
    with pytest.raises(UserError, match=r"^there is no explanation 'layercan'; there are layercam, .*occlusion$"):
        predict(tmp_path / "clip.mp4", explain="layercan", json=str(tmp_path / "answers.json"))
    assert (tmp_path / "answers.json").read_text() == "{}"


def test_a_face_may_be_required(folder):
    with pytest.raises(UserError, match="no face is found"):
        predict(folder / "lawn.jpg", require_face=True)
    predict(folder / "lawn.jpg")


def test_the_command_by_its_name_with_the_packaged_network(tmp_path):
    # Without --weights the packaged network is used, even if there is a folder 'pretrained' in the current one.
    (tmp_path / "pretrained").mkdir()
    script = "import os, sys; os.chdir(sys.argv.pop(1)); from fer_jax import main; main.run()"
    status, out, err = commands.run_script(script, tmp_path, "predict", PHOTOGRAPH)
    assert status == 0, err
    assert ": happy " in out
    for arguments, message in (
        (["predict", "a.jpg", "--config=resnet50"], "--config goes with"),
        (["predict", "a.jpg", "--out=b"], "--out goes with --save"),
        (["serve", "a.jpg"], "'a.jpg' is no option"),
        (["serve", "--port=70000"], "port"),
    ):
        status, _, err = commands.run(commands.main(*arguments))
        assert status == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1


def test_the_users_folder_and_environment_variables_are_meant_in_every_path(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    (home / "run").symlink_to(FIXTURES / "run_0.1")
    monkeypatch.chdir(here)
    paths = ["--weights=~/run", "--json=~/answers.json", "--csv=$ANSWERS/answers.csv", "--save", "--out=~/drawn"]
    environment = {"HOME": str(home), "ANSWERS": str(home), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    status, _, err = commands.run(commands.main("predict", str(PHOTOGRAPH), "--faces=none", *paths), **environment)
    assert status == 0, err
    assert {path.relative_to(home).as_posix() for path in home.rglob("*.*")} == {
        "answers.json",
        "answers.csv",
        "drawn/astronaut_fer.jpg",
    }
    assert list(here.iterdir()) == []
    for command in ("predict", "serve"):
        words = [str(PHOTOGRAPH)] if command == "predict" else []
        status, _, err = commands.run(commands.main(command, *words, "--weights=$NO_SUCH/net.safetensors"))
        assert status == 2
        assert err == (
            "fer_jax: --weights is $NO_SUCH/net.safetensors, and the environment variable NO_SUCH is not set\n"
        )


def test_what_pillow_warns_of_is_not_said():
    script = "import PIL.Image; PIL.Image.MAX_IMAGE_PIXELS = 30_000; from fer_jax import main; main.run()"
    asked = ["--faces=none", f"--weights={FIXTURES / 'run_0.1'}"]
    status, out, err = commands.run_script(script, "predict", PHOTOGRAPH, *asked)
    assert (status, err) == (0, "")
    assert "% (face 200x200 at 0,0)" in out
