"""The benchmark's contestants: the same network and the same work, in this and in other libraries.

Each module's `make(spec)` gives a function that does the work once and waits for it, and the network's number of
parameters; its PACKAGES are those whose versions matter.
"""

import itertools
import os

import numpy as np

from fer_jax.data.dataset import CLASS_NAMES, IMAGE_SHAPE

PEERS = {
    "ours": {"peer": "ours", "conv": "auto"},
    "matmul": {"peer": "ours", "conv": "matmul"},
    "flax": {"peer": "ours", "conv": "lax"},
    "torch": {"peer": "torch_resnet", "compile": False},
    "torch-compile": {"peer": "torch_resnet", "compile": True},
    "keras": {"peer": "keras_resnet", "xla": False},
    "keras-xla": {"peer": "keras_resnet", "xla": True},
    "onnxruntime": {"peer": "onnx_resnet"},
}
STEMS = {
    name: dict(zip(("stem_kernel", "stem_stride", "stem_pool"), values, strict=True))
    for name, values in {"7/2/pool": (7, 2, True), "3/2/none": (3, 2, False), "3/1/none": (3, 1, False)}.items()
}
# Libraries count physical cores, or those of the whole machine; these are the ones this process may use.
NUM_THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def num_parameters(stem: str) -> int:
    """Counts the parameters of ResNet-50 for one channel and seven classes."""
    return 23_512_967 + 64 * STEMS[stem]["stem_kernel"] ** 2


def make_specs(
    task: str, *, peers: list[str], dtypes: list[str], batch: int, stem: str, peers_python: str | None = None
) -> dict[str, dict]:
    """Returns {contestant: what its worker is started with}; peers_python: the interpreter of other libraries."""
    specs = {}
    for peer, dtype in itertools.product(peers, dtypes):
        if peer == "onnxruntime" and (task, dtype) != ("inference", "float32"):
            continue  # all that it does on CPU
        spec = PEERS[peer] | {"task": task, "batch": batch}
        if spec["peer"] == "ours":
            spec["model"] = STEMS[stem] | {"dtype": dtype, "conv": spec.pop("conv")}
        else:
            spec |= {"stem": STEMS[stem], "dtype": dtype} | ({"python": peers_python} if peers_python else {})
        specs[f"{peer} {dtype}"] = spec
    return specs


def make_batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images, uint8 [size, 48, 48, 1], and labels, int32 [size]."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (size, *IMAGE_SHAPE), dtype=np.uint8)
    return images, generator.integers(0, len(CLASS_NAMES), size).astype(np.int32)
