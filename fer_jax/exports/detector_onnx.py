"""The face detector as an ONNX file, for pages that find faces in the browser."""

import pathlib
from collections.abc import Mapping

import numpy as np

from fer_jax.exports.onnx_file import Graph, save
from fer_jax.inference import weights
from fer_jax.models import blazeface


def write(path: pathlib.Path) -> None:
    """Writes the detector with its weights in float16.

    It takes uint8 `pictures` [batch, 192, 192, 3], RGB, and returns float32 `values` [batch, 48, 48, 16] and `scores`
    [batch, 48, 48], in [0, 1]; `models.blazeface.detect` shows what the values mean.
    """
    from onnx import TensorProto, helper

    # The packaged weights are float16: float32 would store the same values in twice the bytes.
    graph = Graph("float16")
    values, scores = _network(graph, weights.read_detector())
    graph.add("Transpose", values, output="values", perm=[0, 2, 3, 1])
    graph.add("Squeeze", scores, graph.constant(np.int64([1])), output="scores")
    size, cells = blazeface.IMAGE_SIZE, blazeface.NUM_CELLS
    inputs = [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["batch", size, size, 3])]
    outputs = [
        helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", cells, cells, 16]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", cells, cells]),
    ]
    save(graph, inputs, outputs, {}, path)


def _network(graph: Graph, params: Mapping) -> tuple[str, str]:
    """Adds `models.blazeface.BlazeFace`, which explains its layers, and returns the names of values and scores."""
    from onnx import TensorProto

    # Browsers and OpenCV have channels last; ONNX has them first.
    x = graph.add("Transpose", "pictures", perm=[0, 3, 1, 2])
    x = graph.add("Div", graph.add("Cast", x, to=TensorProto.FLOAT), graph.constant(np.float32(127.5)))
    x = graph.add("Sub", x, graph.constant(np.float32(1)))
    x = graph.add("Relu", _conv(graph, x, params["stem"]["kernel"].transpose(3, 2, 0, 1), params["stem"]["bias"], 2))
    skips, channels = [], params["stem"]["kernel"].shape[-1]
    for number, (features, stride) in enumerate(blazeface.ENCODER):
        if stride == 2:
            skips.append(x)
        x = _block(graph, x, params[f"encoder_{number}"], stride, features - channels)
        channels = features
    for number, (_, num_blocks) in enumerate(blazeface.DECODER):
        x = graph.add("Relu", _dense(graph, x, params[f"up_{number}"]))
        skip = graph.add("Relu", _dense(graph, skips.pop(), params[f"skip_{number}"]))
        scales = graph.constant(np.float32([1, 1, 2, 2]))
        doubled = graph.add("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
        x = graph.add("Add", skip, doubled)
        for block in range(num_blocks):
            x = _block(graph, x, params[f"decoder_{number}_{block}"], 1, 0)
    return _dense(graph, x, params["box"]), graph.add("Sigmoid", _dense(graph, x, params["score"]))


def _block(graph: Graph, x: str, params: Mapping, stride: int, num_added: int) -> str:
    y = _depthwise(graph, x, params["depthwise_0"], stride)
    y = graph.add("Relu", _dense(graph, y, params["pointwise_0"]))
    y = _dense(graph, _depthwise(graph, y, params["depthwise_1"], 1), params["pointwise_1"])
    if stride == 2:
        x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    # The channels that a block adds are zeros in its shortcut.
    if num_added:
        x = graph.add("Pad", x, graph.constant(np.int64([0, 0, 0, 0, 0, num_added, 0, 0])))
    return graph.add("Relu", graph.add("Add", y, x))


def _depthwise(graph: Graph, x: str, params: Mapping, stride: int) -> str:
    kernel = params["kernel"].transpose(2, 0, 1)[:, None]
    return _conv(graph, x, kernel, params["bias"], stride, group=len(kernel))


def _dense(graph: Graph, x: str, params: Mapping) -> str:
    return _conv(graph, x, params["kernel"].T[:, :, None, None], params["bias"], 1)


def _conv(graph: Graph, x: str, kernel: np.ndarray, bias: np.ndarray, stride: int, group: int = 1) -> str:
    """Adds a convolution; kernel: OIHW. At stride 2 an even size is padded at its end only."""
    window = kernel.shape[-1]
    before = window // 2 if stride == 1 else 0
    return graph.add(
        "Conv",
        x,
        graph.kernel(np.ascontiguousarray(kernel), f"kernel_{len(graph.nodes)}"),
        graph.constant(np.float32(bias)),
        kernel_shape=[window, window],
        strides=[stride, stride],
        pads=[before, before, window // 2, window // 2],
        group=group,
    )
