"""ONNX files: the trained network as a graph that is written node by node, for ONNX Runtime, browsers and phones.

The operators are those of opset 17 (https://github.com/onnx/onnx/blob/main/docs/Changelog.md), in a file of IR version
8, which runtimes of 2022 and later can read. The graph takes uint8 `images` [batch, height, width, channels], in the
shape that the network was trained on, and returns the same as `function.make_function`, for any batch size.
"""

import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fer_jax.errors import UserError, naming
from fer_jax.exports.function import make_function
from fer_jax.inference.preprocessing import Picture, Preprocessing, pictures_of
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.models.resnet import BATCH_NORM_EPSILON, ResNet
from fer_jax.recipe.images import STD_EPSILON

_OPSET, _IR_VERSION = 17, 8


def write(trained: TrainedModel, path: pathlib.Path, *, dtype: str) -> None:
    """Writes the network with its kernels stored in `dtype`, 'float32' or 'float16'; it computes in float32.

    Batch norm is folded into the convolutions before it. The metadata contain class_names and preprocessing, as JSON,
    and, if known, fingerprint, that of the training data, and licence. Raises UserError if a kernel is too large for
    `dtype`, and OSError or StorageError if the file can't be written.
    """
    graph = Graph(dtype)
    logits, cam = _network(graph, trained)
    graph.add("Softmax", logits, axis=-1, output="probabilities")
    graph.add("Identity", logits, output="logits")
    graph.add("Identity", cam, output="cam")
    save(graph, *_interface(trained), _describe(trained), path)


def save(graph: "Graph", inputs: list, outputs: list, metadata: Mapping[str, str], path: pathlib.Path) -> None:
    """Checks a graph and writes it; inputs, outputs: their descriptions. Raises OSError or StorageError."""
    # onnx and onnxruntime are optional dependencies: training needs neither.
    import onnx

    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "fer_jax", inputs, outputs, graph.initializers),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="fer_jax",
    )
    onnx.helper.set_model_props(model, dict(metadata))
    # The full check infers the shapes of all values, so that errors are found here and not by some runtime.
    onnx.checker.check_model(model, full_check=True)
    with naming(path):
        path.write_bytes(model.SerializeToString())


def read(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `predict(uint8 images) -> probabilities`, float32 [batch, classes], by ONNX Runtime on the CPU."""
    import onnxruntime

    # On a GPU, ONNX Runtime would round the inputs of products as the GPU does by default.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


class Graph:
    """Nodes and constants of an ONNX graph that is written node by node; values are referred to by name.

    dtype: the dtype in which `kernel` stores its values.
    """

    def __init__(self, dtype: str):
        self.nodes, self.initializers = [], []
        self._dtype = dtype

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes) -> str:
        """Adds a node and returns the name of its output."""
        from onnx import helper

        output = output or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, value: Any, name: str | None = None) -> str:
        from onnx import numpy_helper

        name = name or f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def kernel(self, value: np.ndarray, name: str) -> str:
        """Stores a kernel in the graph's dtype and returns the name of its float32 value."""
        from onnx import TensorProto

        with np.errstate(over="ignore"):
            stored = value.astype(self._dtype)
        # Folding in a batch norm may make the values of a kernel larger than any trained one.
        if not np.isfinite(stored).all():
            raise UserError(f"{name}, with its batch norm, holds a value that is not finite in {self._dtype}")
        # Runtimes cast it once, when they load the file.
        name = self.constant(stored, name)
        return name if self._dtype == "float32" else self.add("Cast", name, to=TensorProto.FLOAT)


def _interface(trained: TrainedModel) -> tuple[list, list]:
    """Returns the descriptions of the graph's inputs and outputs."""
    from onnx import TensorProto, helper

    shape = trained.preprocessing.image_shape
    images = jax.ShapeDtypeStruct((1, *shape), np.uint8)
    function = make_function(trained.model, trained.preprocessing)
    outputs = jax.eval_shape(function, trained.variables, images)
    return (
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *shape])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *outputs[name].shape[1:]])
            for name in ("probabilities", "logits", "cam")
        ],
    )


def _describe(trained: TrainedModel) -> dict[str, str]:
    known = {"fingerprint": trained.metadata.get("dataset_fingerprint"), "licence": trained.metadata.get("licence")}
    return {
        "class_names": json.dumps(trained.class_names),
        "preprocessing": json.dumps(trained.preprocessing.to_metadata()),
    } | {key: value for key, value in known.items() if value}


def _network(graph: Graph, trained: TrainedModel) -> tuple[str, str]:
    """Adds the network with its own view, and returns its logits and class activation maps."""
    preprocessing = trained.preprocessing
    images = _prepare(graph, preprocessing)
    pictures = [_cut(graph, images, p, preprocessing) for p in pictures_of(preprocessing.view, preprocessing)]
    count = len(pictures)
    # All first pictures come before all second ones.
    batch = pictures[0] if count == 1 else graph.add("Concat", *pictures, axis=0)
    variables = jax.device_get(trained.variables)
    logits, cam = _head(graph, _features(graph, batch, trained.model, variables), variables["params"]["head"])
    if count == 1:
        return logits, cam
    # The logarithm of the mean probability, as in `preprocessing.predict_views`.
    each = graph.add("LogSoftmax", logits, axis=-1)
    each = graph.add("Reshape", each, graph.constant(np.int64([count, -1, len(trained.class_names)])))
    total = graph.add("ReduceLogSumExp", each, axes=[0], keepdims=0)
    return graph.add("Sub", total, graph.constant(np.float32(math.log(count)))), _first_part(graph, cam, count)


def _first_part(graph: Graph, x: str, count: int) -> str:
    """Returns the first of `count` equal parts of the batch x."""
    from onnx import helper

    # Split infers the number of parts from its outputs and needs no sizes, which depend on the unknown batch size.
    parts = [f"part_{number}" for number in range(count)]
    graph.nodes.append(helper.make_node("Split", [x], parts, name="Split_views", axis=0))
    return parts[0]


def _prepare(graph: Graph, preprocessing: Preprocessing) -> str:
    """Adds the operations of `Preprocessing`; returns the images, float32 [batch, channels, height, width]."""
    from onnx import TensorProto

    height, width, channels = preprocessing.image_shape
    if channels == 1:
        # With one channel both layouts are the same bytes, so nothing needs to be transposed.
        x = graph.add("Reshape", "images", graph.constant(np.int64([-1, 1, height, width])))
    else:
        x = graph.add("Transpose", "images", perm=[0, 3, 1, 2])
    x = graph.add("Cast", x, to=TensorProto.FLOAT)
    x = graph.add("Div", x, graph.constant(np.float32(preprocessing.divisor)))
    if preprocessing.standardize:
        centred = graph.add("Sub", x, graph.add("ReduceMean", x, axes=[1, 2, 3]))
        variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=[1, 2, 3])
        deviation = graph.add("Add", graph.add("Sqrt", variance), graph.constant(np.float32(STD_EPSILON)))
        x = graph.add("Div", centred, deviation)
    return x


def _cut(graph: Graph, x: str, picture: Picture, preprocessing: Preprocessing) -> str:
    """Returns a picture that is cut out of the images x."""
    top, left, height, width, is_mirrored = picture
    if (height, width) != preprocessing.image_shape[:2]:
        x = _slice(graph, x, [top, left], [top + height, left + width], axes=[2, 3], steps=[1, 1])
    # From the last column down to the first one, inclusive: no index denotes an end before the first.
    return _slice(graph, x, [-1], [np.iinfo(np.int64).min], axes=[3], steps=[-1]) if is_mirrored else x


def _slice(graph: Graph, x: str, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> str:
    return graph.add("Slice", x, *(graph.constant(np.int64(values)) for values in (starts, ends, axes, steps)))


def _features(graph: Graph, x: str, model: ResNet, variables: Mapping[str, Any]) -> str:
    """Adds the network without its head (see `models.resnet`) and returns the output of the last stage."""
    params, stats = variables["params"], variables["batch_stats"]
    stem = _fold(params, stats, "stem_conv", "stem_norm")
    x = graph.add("Relu", _conv(graph, x, *stem, "stem", stride=model.stem_stride))
    if model.stem_pool:
        # The padding never changes the maximum, because the inputs come from a ReLU and aren't negative.
        x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, num_blocks in enumerate(model.stage_sizes, 1):
        for block in range(1, num_blocks + 1):
            name = f"stage{stage}_block{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            x = _block(graph, x, params[name], stats[name], name, stride=stride, bottleneck=model.bottleneck)
    return x


def _block(graph: Graph, x: str, params: Mapping, stats: Mapping, name: str, *, stride: int, bottleneck: bool) -> str:
    # ResNet v1.5: the first 3x3 convolution has the stride.
    strides = [1, stride, 1] if bottleneck else [stride, 1]
    y = x
    for number, layer_stride in enumerate(strides):
        folded = _fold(params, stats, f"Conv_{number}", f"BatchNorm_{number}")
        y = _conv(graph, y, *folded, f"{name}/Conv_{number}", stride=layer_stride)
        if number < len(strides) - 1:
            y = graph.add("Relu", y)
    # The shortcut has a projection only if the identity doesn't fit.
    if "shortcut_conv" in params:
        x = _conv(graph, x, *_fold(params, stats, "shortcut_conv", "shortcut_norm"), f"{name}/shortcut", stride=stride)
    if "squeeze_excitation" in params:
        y = _squeeze_excitation(graph, y, params["squeeze_excitation"], f"{name}/squeeze_excitation")
    return graph.add("Relu", graph.add("Add", y, x))


def _squeeze_excitation(graph: Graph, x: str, params: Mapping, name: str) -> str:
    hidden = graph.add("GlobalAveragePool", x)
    for layer, activation in (("squeeze", "Relu"), ("excite", "Sigmoid")):
        # On an image of one pixel a dense layer is a 1x1 convolution.
        kernel, bias = params[layer]["kernel"][None, None], params[layer]["bias"]
        hidden = graph.add(activation, _conv(graph, hidden, kernel, bias, f"{name}/{layer}"))
    return graph.add("Mul", x, hidden)


def _head(graph: Graph, features: str, params: Mapping) -> tuple[str, str]:
    """Returns the logits and the class activation maps; the logits are the means of the maps plus the bias."""
    cam = _conv(graph, features, params["kernel"][None, None], None, "head")
    # The mean and the product with the kernel can be computed in either order, so the maps cost no second product.
    means = graph.add("Flatten", graph.add("GlobalAveragePool", cam))
    return graph.add("Add", means, graph.constant(np.float32(params["bias"]), "head/bias")), cam


def _fold(params: Mapping, stats: Mapping, conv: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel (HWIO) and bias, float32, of the convolution with its batch norm folded in."""
    # Computed in float64, so that nothing is rounded twice.
    kernel = np.float64(params[conv]["kernel"])
    scale, bias = np.float64(params[norm]["scale"]), np.float64(params[norm]["bias"])
    mean, var = np.float64(stats[norm]["mean"]), np.float64(stats[norm]["var"])
    factor = scale / np.sqrt(var + BATCH_NORM_EPSILON)
    return np.float32(kernel * factor), np.float32(bias - mean * factor)


def _conv(graph: Graph, x: str, kernel: np.ndarray, bias: np.ndarray | None, name: str, *, stride: int = 1) -> str:
    """Adds a convolution, padded by half its window at each side as in `models.resnet`; kernel: HWIO."""
    window = kernel.shape[0]
    parts = [graph.kernel(kernel.transpose(3, 2, 0, 1), f"{name}/kernel")]
    if bias is not None:
        parts.append(graph.constant(np.float32(bias), f"{name}/bias"))
    padding = [window // 2] * 4
    return graph.add("Conv", x, *parts, kernel_shape=[window, window], strides=[stride, stride], pads=padding)
