"""The PyTorch peer's network, exported to ONNX with its batch size fixed, in ONNX Runtime on CPU."""

from collections.abc import Callable
from typing import Any

import onnxruntime
import torch

from scripts.benchmark.peers import NUM_THREADS
from scripts.benchmark.peers.torch_resnet import make_network

PACKAGES = ("onnxruntime", "onnx", "onnxscript", "torch")


def make(spec: dict) -> tuple[Callable[[], Any], int]:
    """Returns a function that infers once and returns the logits, and the network's number of parameters.

    spec: {batch, image_size, net: of NETS}.
    """
    network, images, _, num_parameters = make_network(spec)
    program = torch.onnx.export(network.eval(), (images,), dynamo=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = NUM_THREADS
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed), num_parameters
