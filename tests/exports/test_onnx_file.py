"""ONNX files, run by ONNX Runtime, compared with the networks that they were written from."""

import json

import hypothesis
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import strategies as st

from fer_jax.errors import UserError
from fer_jax.exports import onnx_file
from fer_jax.exports.function import predict
from fer_jax.inference.preprocessing import Preprocessing
from tests.support.networks import CASES, random_images, random_network


def run(path, images) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


@st.composite
def networks(draw):
    height, width = draw(st.integers(9, 15)), draw(st.integers(9, 15))
    crop = draw(st.none() | st.integers(8, 9))
    views = ["whole", "whole_mirrored"] + ["centre_crop", "ten_crops"] * (crop is not None)
    preprocessing = Preprocessing(
        (height, width, draw(st.sampled_from([1, 3]))),
        standardize=draw(st.booleans()),
        crop=crop,
        view=draw(st.sampled_from(views)),
    )
    depth = draw(st.sampled_from([10, 18, 50]))
    options = {
        "depth": depth,
        "stages": draw(st.integers(1, 2 if depth == 50 else 4)),  # stages of depth 50 have many blocks to compile
        "width": draw(st.integers(1, 5)),
        "stem_kernel": draw(st.sampled_from([1, 3, 5, 7])),
        "stem_stride": draw(st.integers(1, 3)),
        "stem_pool": draw(st.booleans()),
        "squeeze_excitation": draw(st.booleans()),
    }
    return random_network(preprocessing, seed=draw(st.integers(0, 99)), **options)


@pytest.mark.parametrize(("preprocessing", "options"), CASES)
def test_a_network_gives_the_same_answers_in_onnx_runtime(preprocessing, options, tmp_path):
    assert_same_answers(random_network(preprocessing, **options), 3, tmp_path)


# JAX takes seconds to compile the network of each example.
@hypothesis.settings(max_examples=5)
@hypothesis.given(networks(), st.integers(1, 4))
def test_every_network_gives_the_same_answers_in_onnx_runtime(tmp_path_factory, trained, number):
    assert_same_answers(trained, number, tmp_path_factory.mktemp("onnx"))


def assert_same_answers(trained, number: int, folder):
    path = folder / "net.onnx"
    onnx_file.write(trained, path, dtype="float32")
    # The last image is left out: it has a single grey value, and standardising it leaves only round-off (see BOUNDS).
    images = random_images(number + 1, trained.preprocessing)[:number]
    expected, found = predict(trained, images), run(path, images)
    assert found.keys() == {"probabilities", "logits", "cam"}
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, atol=1e-5 * max(1, np.abs(values).max()), err_msg=name)


def test_the_map_s_mean_and_the_bias_are_the_logits(tmp_path):
    trained = random_network(Preprocessing((24, 24, 1)), stages=2)
    onnx_file.write(trained, tmp_path / "net.onnx", dtype="float32")
    found = run(tmp_path / "net.onnx", random_images(3, trained.preprocessing))
    assert found["cam"].shape == (3, 3, 3, 3)
    expected = found["cam"].mean(axis=(2, 3)) + trained.variables["params"]["head"]["bias"]
    np.testing.assert_allclose(found["logits"], expected, atol=1e-5)


def test_float16_halves_the_file_and_changes_little(tmp_path):
    trained = random_network(stages=4, width=16)
    sizes = {}
    for dtype in ("float32", "float16"):
        onnx_file.write(trained, tmp_path / f"{dtype}.onnx", dtype=dtype)
        sizes[dtype] = (tmp_path / f"{dtype}.onnx").stat().st_size
    assert sizes["float16"] < 0.52 * sizes["float32"]
    images = random_images(9, trained.preprocessing)
    found = onnx_file.read(tmp_path / "float16.onnx")(images)
    difference = np.abs(found - predict(trained, images)["probabilities"]).max()
    assert 1e-6 < difference < 1e-2


def test_a_kernel_that_float16_can_not_hold_is_named(tmp_path):
    trained = random_network()
    trained.variables["params"]["stage2_block1"]["BatchNorm_0"]["scale"][1] = 1e9
    with pytest.raises(UserError, match=r"stage2_block1/Conv_0/kernel, with its batch norm, holds a value that is not"):
        onnx_file.write(trained, tmp_path / "net.onnx", dtype="float16")
    assert not (tmp_path / "net.onnx").exists()


def test_the_file_says_what_it_is_of_and_old_runtimes_read_it(tmp_path):
    trained = random_network(Preprocessing((13, 14, 1), standardize=True, crop=9, view="ten_crops"))
    trained.metadata["licence"] = "CC BY 4.0"
    onnx_file.write(trained, tmp_path / "net.onnx", dtype="float32")
    model = onnx.load(tmp_path / "net.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["class_names"]) == ["sad", "happy", "bored"]
    assert Preprocessing.from_metadata(json.loads(metadata["preprocessing"])) == trained.preprocessing
    assert (metadata["fingerprint"], metadata["licence"]) == ("0123456789abcdef", "CC BY 4.0")
    assert (model.ir_version, [(entry.domain, entry.version) for entry in model.opset_import]) == (8, [("", 17)])
    (images,) = model.graph.input
    assert [axis.dim_param or axis.dim_value for axis in images.type.tensor_type.shape.dim] == ["batch", 13, 14, 1]
    # Batch norm is folded into the convolutions.
    assert not {"BatchNormalization", "Pad"} & {node.op_type for node in model.graph.node}
