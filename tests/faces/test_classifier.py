"""A trained network applied to pictures of faces."""

import collections
import io
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from fer_jax import Classifier
from fer_jax.errors import UserError
from fer_jax.faces.pictures import Picture
from fer_jax.inference import weights
from fer_jax.inference.trained_model import TrainedModel, make_model

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
RUN = FIXTURES / "run_0.1"
# Eileen Collins, NASA, in the public domain, from scikit-image's astronaut. BOX is its one face, measured by eye.
ASTRONAUT = FIXTURES / "astronaut.jpg"
BOX = [51, 55, 92, 92]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier(RUN)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.asarray(Image.open(ASTRONAUT))


@pytest.fixture(scope="module")
def couple(photograph) -> np.ndarray:
    """Returns a picture of two faces, the larger one on the right."""
    small = np.asarray(Image.fromarray(photograph).resize((120, 120), Image.Resampling.BOX))
    canvas = np.full((220, 400, 3), 128, np.uint8)
    canvas[40:160, 20:140], canvas[10:210, 190:390] = small, photograph
    return canvas


def without_faces() -> np.ndarray:
    # Not grey: the detector searches the parts of a grey picture too.
    return np.full((60, 80, 3), (200, 120, 60), np.uint8)


def encode(picture: np.ndarray, format: str = "PNG", **arguments) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format, **arguments)
    return file.getvalue()


def random_images(number: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, *(shape or (48, 48, 1))), dtype=np.uint8)


def test_a_photograph_s_face_gets_its_place_and_expressions(classifier):
    (face,) = classifier(str(ASTRONAUT))
    assert list(face) == ["box", "emotions", "emotion", "score", "face_score", "eyes", "roll"]
    np.testing.assert_allclose(face["box"], BOX, atol=3)
    assert all(type(length) is int for length in face["box"])
    assert tuple(face["emotions"]) == classifier.class_names
    assert abs(sum(face["emotions"].values()) - 1) < 1e-5
    assert face["score"] == face["emotions"][face["emotion"]] == max(face["emotions"].values())
    assert 0.8 < face["face_score"] < 1
    assert face["eyes"][0][0] < face["eyes"][1][0]
    assert json.loads(json.dumps(face)) == face


def test_the_network_is_shown_what_is_cut_out_of_the_picture(classifier, photograph):
    (face,) = classifier(photograph)
    x, y, side, _ = face["box"]
    # The frame by hand: its side is 1.14 sides of the box, and its centre lies 0.027 sides higher.
    centre, half = (x + side / 2, y + side / 2 - 0.027 * side), 1.14 * side / 2
    box = (centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half)
    cut = Image.fromarray(photograph).convert("L").resize((48, 48), Image.Resampling.BOX, box=box)
    (expected,) = classifier.faces(np.asarray(cut)[None, ..., None])
    np.testing.assert_allclose(list(face["emotions"].values()), expected, atol=0.02)


def test_every_kind_of_picture_gives_the_same_answer(classifier, photograph):
    content = ASTRONAUT.read_bytes()
    expected = classifier(photograph)
    with ASTRONAUT.open("rb") as file:
        for source in (ASTRONAUT, content, file, io.BytesIO(content), Image.open(ASTRONAUT), Picture(photograph)):
            assert classifier(source) == expected
    assert classifier(photograph[..., ::-1], bgr=True) == expected


def test_faces_come_the_largest_first_and_alone_if_asked_for(classifier, couple):
    found = classifier(couple)
    assert [face["box"][0] > 190 for face in found] == [True, False]
    assert found[0]["box"][2] > found[1]["box"][2]
    assert classifier(couple, faces="largest") == found[:1]
    assert classifier(couple, min_face=70) == found[:1]
    assert classifier(couple, min_face=200) == []
    assert classifier(couple, threshold=0.99) == []
    assert classifier.top(couple) == (found[0]["emotion"], found[0]["score"])


def test_a_picture_without_a_face_has_none(classifier):
    nothing = without_faces()
    assert classifier(nothing) == []
    assert classifier.top(nothing) == (None, None)
    assert classifier([nothing, nothing]) == [[], []]


def test_a_list_gives_a_list_of_lists_and_an_iterator_a_generator(classifier, photograph, couple):
    nothing = without_faces()
    sources = [str(ASTRONAUT), nothing, couple, photograph]
    found = classifier(sources)
    assert [len(faces) for faces in found] == [1, 0, 2, 1]
    np.testing.assert_allclose(found[0][0]["box"], found[3][0]["box"])
    assert classifier(tuple(sources)) == found
    assert classifier([]) == []
    lazy = classifier(iter(sources))
    assert not isinstance(lazy, list)
    assert list(lazy) == found


def test_an_iterator_is_read_sixteen_pictures_ahead_and_no_further(classifier):
    read = []

    def sources():
        for number in range(40):
            read.append(number)
            yield without_faces()

    found = classifier(sources())
    assert read == []
    next(found)
    assert len(read) == 16
    assert len(list(found)) == 39


def test_only_two_sizes_of_batches_are_computed(classifier, monkeypatch):
    sizes = collections.Counter()
    compute = classifier.trained.probabilities
    monkeypatch.setattr(
        type(classifier.trained), "probabilities", lambda self, images: sizes.update([len(images)]) or compute(images)
    )
    for number in (1, 2, 9, 16, 19, 30):
        assert classifier.faces(random_images(number)).shape == (number, 7)
    assert set(sizes) == {1, 16}


def test_places_are_in_the_upright_original(classifier, photograph):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.asarray(Image.fromarray(photograph).transpose(Image.Transpose.ROTATE_90))
    (face,) = classifier(encode(turned, exif=exif))
    np.testing.assert_allclose(face["box"], BOX, atol=3)
    # A large JPEG is decoded at half its size.
    large = np.asarray(Image.fromarray(photograph).resize((2800, 2800), Image.Resampling.BILINEAR))
    (face,) = classifier(encode(large, "JPEG"))
    np.testing.assert_allclose(face["box"], np.array(BOX) * 14, atol=60)
    np.testing.assert_allclose(face["eyes"], np.array([(79, 85), (115, 87)]) * 14, atol=40)


def test_a_box_ends_with_the_picture(classifier, photograph):
    half = photograph[:, 75:]
    (face,) = classifier(half)
    x, y, width, height = face["box"]
    assert x == 0
    assert y + height <= 200
    assert width < height


def test_pictures_that_are_faces_are_taken_as_they_are(classifier, photograph):
    wide = random_images(1, 40, 60, 3)[0]
    (face,) = classifier(wide, faces="none")
    assert face["box"] == [10, 0, 40, 40]
    assert (face["face_score"], face["eyes"], face["roll"]) == (1.0, None, None)
    json.dumps(face)
    grey = random_images(1)[0]
    (face,) = classifier(grey, faces="none")
    np.testing.assert_allclose(list(face["emotions"].values()), classifier.faces(grey[None])[0], atol=1e-6)
    assert Classifier(RUN, detector="none")(grey) == [face]
    # Even a small picture is taken.
    (face,) = classifier(random_images(1, 20, 20, 3)[0], faces="none")
    assert face["small"] is True


def test_a_small_face_is_said_to_be_small(classifier, photograph):
    small = np.asarray(Image.fromarray(photograph).resize((60, 60), Image.Resampling.BOX))
    (face,) = classifier(small)
    assert face["small"] is True
    assert classifier(small, min_face=29) == []


def test_arguments_that_cannot_be_meant_are_errors(classifier, photograph):
    with pytest.raises(UserError, match="faces is 'some'; it must be one of 'all', 'largest', 'none'"):
        classifier(photograph, faces="some")
    with pytest.raises(UserError, match="threshold is 50; it must be between 0 and 1"):
        classifier(photograph, threshold=50)
    with pytest.raises(UserError, match="detector is 'haar'"):
        Classifier(RUN, detector="haar")
    with pytest.raises(UserError, match=r"nowhere\.jpg is not there"):
        classifier("nowhere.jpg")
    with pytest.raises(UserError, match="it must be a path, bytes, a binary file"):
        classifier(None)


def test_without_packaged_weights_a_source_is_asked_for():
    try:
        weights.resolve(weights.PRETRAINED)
    except UserError:
        with pytest.raises(UserError, match="no pretrained weights"):
            Classifier()
    else:
        assert len(Classifier()(ASTRONAUT)) == 1


def test_a_folder_called_pretrained_is_meant_by_its_name_and_not_by_default(tmp_path, monkeypatch):
    (tmp_path / "pretrained").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Classifier().trained.metadata == TrainedModel.load(weights.resolve(None)).metadata
    with pytest.raises(UserError, match=r"pretrained/config\.json is not there"):
        Classifier("pretrained")


def animation(*frames: np.ndarray) -> bytes:
    first, *others = map(Image.fromarray, frames)
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=others, duration=40, quality=90)
    return file.getvalue()


def test_an_animation_is_a_video(classifier, photograph):
    nothing = np.full_like(photograph, (200, 120, 60))
    content = animation(photograph, nothing, photograph)
    faces = classifier(content)
    assert not isinstance(faces, list)
    assert [len(each) for each in faces] == [1, 0, 1]
    # In a list, an animation stands for its first frame.
    assert [len(each) for each in classifier([content, nothing])] == [1, 0]
    stream = list(classifier.stream(io.BytesIO(content).getvalue(), every=2, faces="largest"))
    assert [answer["frame"] for answer in stream] == [0, 2]
    np.testing.assert_allclose([answer["time"] for answer in stream], [0, 0.08])
    np.testing.assert_allclose(stream[1]["faces"][0]["box"], BOX, atol=3)


def test_the_top_expression_is_of_one_picture(classifier, photograph):
    content = animation(photograph, photograph[::-1])
    for several in (content, "clip.mp4", 0, [photograph], [], (photograph,), iter([photograph])):
        with pytest.raises(UserError, match=r"^top takes one picture; stream takes a video"):
            classifier.top(several)


@pytest.mark.video
def test_a_video_s_frames_are_classified(classifier, photograph, tmp_path):
    import cv2

    path = str(tmp_path / "film.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 25, (200, 200))
    for picture in [photograph, np.full_like(photograph, (200, 120, 60))] * 10:
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
    writer.release()
    assert [len(faces) for faces in classifier(path)] == [1, 0] * 10
    stream = list(classifier.stream(path, every=5))
    assert [answer["frame"] for answer in stream] == [0, 5, 10, 15]
    np.testing.assert_allclose([answer["time"] for answer in stream], [0, 0.2, 0.4, 0.6], atol=0.01)


def test_faces_get_the_probabilities_of_the_network(classifier):
    images = random_images(19)
    probabilities = classifier.faces(images)
    np.testing.assert_allclose(probabilities, classifier.trained.probabilities(images), atol=1e-5)
    assert probabilities.shape == (19, len(classifier.class_names))
    np.testing.assert_array_equal(classifier.faces(images[..., 0]), probabilities)
    assert classifier.faces(images[:0]).shape == (0, 7)
    with pytest.raises(UserError, match=r"takes uint8 \[n, 48, 48, 1\]"):
        classifier.faces(images[:, :40])


def test_features_are_those_of_images_or_of_a_picture_s_faces(classifier, photograph, couple):
    images = random_images(9)
    features = classifier.features(images)
    head = classifier.trained.variables["params"]["head"]
    logits = features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(jax.nn.softmax(logits), classifier.faces(images), atol=1e-5)
    np.testing.assert_allclose(classifier.features(images[..., 0]), features)
    dimension = features.shape[1]
    assert classifier.features(couple).shape == (2, dimension)
    assert classifier.features(couple, faces="largest").shape == (1, dimension)
    assert classifier.features(without_faces()).shape == (0, dimension)
    (face,) = classifier(photograph)
    logits = classifier.features(ASTRONAUT)[0] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(jax.nn.softmax(logits), list(face["emotions"].values()), atol=1e-5)


@pytest.mark.parametrize("image_shape", [(32, 32, 3), (64, 64, 1)])
def test_networks_of_other_sizes_and_colours(classifier, photograph, image_shape, tmp_path):
    trained = classifier.trained
    model = make_model(trained.config.model, num_classes=2)
    variables = jax.jit(lambda key: model.init(key, np.zeros((1, *image_shape), np.float32), train=False))(
        jax.random.key(0)
    )
    path = tmp_path / "net.safetensors"
    description = {**trained.metadata, "class_names": ["calm", "tense"]}
    description |= {"preprocessing": {"image_shape": list(image_shape), "divisor": 255.0}}
    config = {"config": trained.config.to_dict(), "step": 1}
    weights.write(path, variables, {**description, **config}, dtype="float32")
    assert TrainedModel.load(path).preprocessing.image_shape == image_shape
    other = Classifier(path)
    (face,) = other(photograph)
    assert tuple(face["emotions"]) == ("calm", "tense")
    np.testing.assert_allclose(face["box"], BOX, atol=3)
    assert other.features(photograph).shape[0] == 1
    # Colours matter only to a network of three channels.
    (grey,) = other(np.asarray(Image.fromarray(photograph).convert("L")))
    same = np.isclose(grey["score"], face["score"], atol=1e-3)
    assert same == (image_shape[2] == 1)


def test_an_annotated_picture_has_the_size_of_the_original(classifier, photograph):
    faces = classifier(ASTRONAUT)
    drawn = classifier.annotate(ASTRONAUT, faces)
    assert drawn.size == (200, 200)
    assert (np.asarray(drawn)[100, 50:54] == 255).all(axis=-1).any()
    np.testing.assert_array_equal(classifier.annotate(photograph, []), photograph)
    # OpenCV's array becomes Pillow's image.
    np.testing.assert_array_equal(classifier.annotate(photograph[..., ::-1], [], bgr=True), photograph)


def test_a_prediction_loads_neither_tensorflow_nor_opencv():
    code = (
        "import sys; from fer_jax import Classifier; "
        f"assert len(Classifier({str(RUN)!r})({str(ASTRONAUT)!r})) == 1; "
        "sys.exit(', '.join(name for name in ('tensorflow', 'clu', 'cv2', 'pandas', 'sklearn', 'matplotlib') "
        "if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
