"""The benchmark's contestants: the same networks and the same work, in this library and in others.

Each module's `make(spec)` returns a function that does the work once and returns its result, and the network's number
of parameters; its PACKAGES are those whose versions are reported. If the device works asynchronously, as in training,
the function only starts the work, and the module's `wait(result)` returns when that and all earlier work is done.
"""

import itertools
import os

import numpy as np

from fer_jax.data.dataset import CLASS_NAMES

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
# Depth: (blocks per stage, bottleneck), as in table 1 of He et al. 2016. fer_jax's own are in models/resnet.py.
ARCHITECTURES = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
}
_KEYS = ("depth", "stages", "width", "stem_kernel", "stem_stride", "stem_pool")
# Named by depth, or by the stages if they aren't all four, and by the stem's kernel, stride and pooling.
NETS = {
    name: dict(zip(_KEYS, values, strict=True))
    for name, values in {
        "resnet50-7/2/pool": (50, 4, 64, 7, 2, True),
        "resnet50-3/2/none": (50, 4, 64, 3, 2, False),
        "resnet50-3/1/none": (50, 4, 64, 3, 1, False),
        "resnet18-3/1/pool": (18, 4, 64, 3, 1, True),
        "resnet18-3/2/none": (18, 4, 64, 3, 2, False),
        "three-stages-3/1/pool": (18, 3, 64, 3, 1, True),
    }.items()
}
# The (image size, batch) at which a step of each network is measured by default.
SIZES = dict.fromkeys(NETS, (48, 64)) | {
    "resnet18-3/1/pool": (40, 128),
    "resnet18-3/2/none": (48, 128),
    "three-stages-3/1/pool": (40, 128),
}
# The cores that this process may use; libraries would count physical cores, or those of the whole machine.
NUM_THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def make_specs(
    task: str,
    *,
    peers: list[str],
    dtypes: list[str],
    batch: int,
    net: str,
    image_size: int,
    peers_python: str | None = None,
) -> dict[str, dict]:
    """Returns {contestant: the spec of its worker}; peers_python: the interpreter for the other libraries."""
    specs = {}
    for peer, dtype in itertools.product(peers, dtypes):
        if peer == "onnxruntime" and (task, dtype) != ("inference", "float32"):
            continue  # the only case of ONNX Runtime on CPU
        spec = PEERS[peer] | {"task": task, "batch": batch, "image_size": image_size}
        if spec["peer"] == "ours":
            spec["model"] = NETS[net] | {"dtype": dtype, "conv": spec.pop("conv")}
        else:
            spec |= {"net": NETS[net], "dtype": dtype} | ({"python": peers_python} if peers_python else {})
        specs[f"{peer} {dtype}"] = spec
    return specs


def keep_programs() -> None:
    """Makes JAX cache compiled programs, as the command does: a run that compiles little has more time to measure."""
    from fer_jax.system import compilation_cache
    from fer_jax.system.terminal import Terminal

    compilation_cache.enable(Terminal(is_primary=False))


def jax_peak_memory() -> int | None:
    """Returns JAX's peak memory use of an accelerator, in bytes; None on a CPU."""
    import jax  # the other libraries' interpreter may lack it

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def make_batch(size: int, image_size: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images, uint8 [size, image_size, image_size, 1], and labels, int32 [size]."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (size, image_size, image_size, 1), dtype=np.uint8)
    return images, generator.integers(0, len(CLASS_NAMES), size).astype(np.int32)
