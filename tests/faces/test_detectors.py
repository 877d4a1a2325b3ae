"""The choice of a detector, and the two detectors other than BlazeFace."""

import sys

import numpy as np
import pytest

from fer_jax.errors import UserError
from fer_jax.faces import detectors
from fer_jax.faces.detection import BlazeFaceDetector, Frame


def test_a_detector_goes_by_its_name():
    assert isinstance(detectors.make_detector("blazeface"), BlazeFaceDetector)
    assert detectors.make_detector("none") is detectors.take_whole
    with pytest.raises(UserError, match=r"detector is 'haar'; it must be 'blazeface', 'none' or 'yunet:FILE\.onnx'"):
        detectors.make_detector("haar")


@pytest.mark.parametrize(
    ("height", "width", "box"), [(48, 48, (0, 0, 48, 48)), (40, 61, (10, 0, 40, 40)), (61, 40, (0, 10, 40, 40))]
)
def test_a_picture_that_is_a_face_is_its_centred_square(height, width, box):
    ((face,),) = detectors.take_whole([np.zeros((height, width, 3), np.uint8)])
    assert (face.box, face.score, face.eyes) == (box, 1.0, None)
    assert face.frame == Frame(box[0] + box[2] / 2, box[1] + box[3] / 2, box[2])


def test_without_opencv_yunet_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"yunet:FILE needs OpenCV .*: pip install 'fer_jax\[video\]'"):
        detectors.make_detector("yunet:detector.onnx")


@pytest.mark.video
def test_yunet_s_file_must_be_there_and_be_one(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.onnx, the detector's file, is not there"):
        detectors.make_detector(f"yunet:{tmp_path}/nothing.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(UserError, match=r"text\.onnx is no detector that OpenCV .* reads") as error:
        detectors.make_detector(f"yunet:{tmp_path}/text.onnx")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("roll", [0, 25, -80])
def test_a_frame_has_its_keypoints_where_fer_2013_has_them(roll):
    # Eyes, nose, and the mouth's corners on both sides of its middle, in a rotated frame of side 200 at (300, 150).
    places = np.array([[0.318, 0.395], [0.686, 0.393], [0.493, 0.592], [0.4, 0.757], [0.6, 0.757]])
    angle = np.radians(roll)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = 200 * (places - 0.5) @ turn.T + [300, 150]
    np.testing.assert_allclose(detectors.frame_by_keypoints(points), (300, 150, 200), atol=1e-9)
