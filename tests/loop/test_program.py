"""Properties of the steps for GPUs, TPUs and eight devices, read from their lowered and compiled programs."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import parallel
from fer_jax.data.dataset import IMAGE_SHAPE
from fer_jax.inference.evaluator import make_eval_step
from fer_jax.inference.preprocessing import Preprocessing
from fer_jax.inference.trained_model import make_predict
from fer_jax.models.resnet import ResNet
from fer_jax.recipe import optimizer, state
from fer_jax.recipe.images import AugmentConfig
from fer_jax.recipe.step import make_train_step, repeat

BATCH_SIZE = 16
NUM_EXAMPLES = 40
MAPPERS = pytest.mark.parametrize("mapper", ["shard_map", "pmap"])
LOADERS = pytest.mark.parametrize("loader", ["tf.data", "device"])
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "u8": 1}


def schedule(step):
    return 0.001


OPTIMIZER = optimizer.make_optimizer({"name": "adam", "clip_norm": None, "weight_decay": 0.0}, schedule)


@functools.cache
def network(sync: bool) -> ResNet:
    return ResNet(
        stage_sizes=(1, 1),
        bottleneck=True,
        width=4,
        dtype=jnp.bfloat16,
        axis_name=parallel.AXIS_NAME if sync else None,
    )


@functools.cache
def first_state() -> state.TrainState:
    create = functools.partial(state.create, network(False), OPTIMIZER, seed=0, image_shape=IMAGE_SHAPE)
    return parallel.replicate(jax.jit(create)(), parallel.make_mesh())


def host_batch(loader: str, *, stacked: bool) -> dict:
    batch = {"index": np.arange(BATCH_SIZE, dtype=np.int32)}
    if not stacked:  # an evaluation batch
        batch["mask"] = np.ones(BATCH_SIZE, bool)
    if loader == "tf.data":
        batch["image"] = np.zeros((BATCH_SIZE, *IMAGE_SHAPE), np.uint8)
        batch["label"] = np.zeros(BATCH_SIZE, np.int32)
    return {key: value[None] for key, value in batch.items()} if stacked else batch


@functools.cache
def arguments(kind: str, mapper: str, loader: str) -> tuple:
    mesh, is_train = parallel.make_mesh(), kind == "train"
    whole = {"image": np.zeros((NUM_EXAMPLES, *IMAGE_SHAPE), np.uint8), "label": np.zeros(NUM_EXAMPLES, np.int32)}
    data = parallel.replicate(whole, mesh) if loader == "device" else {}
    batch = parallel.shard_batch(host_batch(loader, stacked=is_train), mesh, mapper, batch_axis=int(is_train))
    variables = {"params": first_state().params, "batch_stats": first_state().batch_stats}
    return (first_state() if is_train else variables), data, batch


def mapped(kind: str, mapper: str, sync: bool, reduce_dtype: str):
    mesh = parallel.make_mesh()
    if kind == "eval":
        step = make_eval_step(make_predict(network(sync), Preprocessing(IMAGE_SHAPE)), axis_name=parallel.AXIS_NAME)
        return parallel.map_step(step, mesh, mapper)
    step = make_train_step(
        network(sync),
        OPTIMIZER,
        schedule=schedule,
        augment_config=AugmentConfig(flip=0.5, rotation=10.0, zoom=0.1),
        label_smoothing=0.0,
        seed=0,
        axis_name=parallel.AXIS_NAME,
        reduce_dtype=reduce_dtype,
    )
    return parallel.map_step(repeat(step), mesh, mapper, batch_axis=1, donate=True)


@functools.cache
def lowered(kind="train", mapper="shard_map", loader="tf.data", sync=True, reduce_dtype="float32"):
    return mapped(kind, mapper, sync, reduce_dtype).lower(*arguments(kind, mapper, loader))


@functools.cache
def compiled(*args, **kwargs):
    return lowered(*args, **kwargs).compile()


def all_reduces(program) -> list[list[tuple[str, int]]]:
    """Returns, for each all-reduce of a compiled program, the (dtype, number of values) of the arrays that it sums."""
    results = re.findall(r"= (.*?) all-reduce(?:-start)?\(", program.as_text())
    return [
        [(dtype, math.prod(map(int, filter(None, shape.split(","))))) for dtype, shape in shapes]
        for shapes in (re.findall(r"(\w+)\[([\d,]*)\]", result) for result in results)
    ]


def size_in_bytes(messages) -> int:
    return sum(BYTES[dtype] * size for message in messages for dtype, size in message)


def nbytes(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("kind", ["train", "eval"])
@LOADERS
def test_steps_lower_for_gpus_and_tpus_with_stock_convolutions_in_bfloat16(platform, kind, loader):
    step = mapped(kind, "shard_map", True, "float32")
    exported = jax.export.export(step, platforms=(platform,))(*arguments(kind, "shard_map", loader))
    assert exported.platforms == (platform,)
    assert exported.nr_devices == 8
    assert_is_fit_for_accelerators(exported.mlir_module(), kind)


@pytest.mark.parametrize("kind", ["train", "eval"])
@LOADERS
def test_pmap_lowers_to_the_same_convolutions(kind, loader):
    assert_is_fit_for_accelerators(lowered(kind, "pmap", loader).as_text(), kind)


def assert_is_fit_for_accelerators(program: str, kind: str):
    convolutions = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    num_kernels = sum(leaf.ndim == 4 for leaf in jax.tree.leaves(first_state().params))
    forward = [line for line in convolutions if "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line]
    assert len(forward) == num_kernels
    # The backward pass has the gradients of all kernels and of all inputs except the images.
    assert len(convolutions) == (3 * num_kernels - 1 if kind == "train" else num_kernels)
    for line in convolutions:
        assert re.search(r": \(tensor<\S+xbf16>, tensor<\S+xbf16>\) -> tensor<\S+xbf16>", line), line
    assert "f64" not in program
    for word in ("callback", "outfeed", "infeed", "stablehlo.send", "stablehlo.recv"):
        assert word not in program
    assert program.count("stablehlo.all_reduce") > 0


@MAPPERS
@LOADERS
def test_gradients_travel_together_and_nothing_else_does(mapper, loader):
    messages = all_reduces(compiled("train", mapper, loader, sync=False))
    # One all-reduce has all gradients, the averaged batch statistics and the loss, the other has two counts of images.
    assert len(messages) == 2
    assert size_in_bytes(messages) == nbytes(first_state().params) + nbytes(first_state().batch_stats) + 4 + 2 * 4


def test_synchronised_batch_norm_adds_its_sums_and_nothing_else():
    plain = all_reduces(compiled("train", sync=False))
    sync = all_reduces(compiled("train", sync=True))
    channels = nbytes(first_state().batch_stats) // 4 // 2
    num_norms = len(jax.tree.leaves(first_state().batch_stats)) // 2
    # Means and mean squares forward and their gradients backward replace the running statistics at the end.
    assert size_in_bytes(sync) - size_in_bytes(plain) == 4 * 4 * channels - nbytes(first_state().batch_stats)
    assert len(sync) - len(plain) <= 2 * num_norms


def test_gradients_may_travel_as_bfloat16():
    text = {dtype: lowered(sync=False, reduce_dtype=dtype).as_text() for dtype in ("float32", "bfloat16")}
    sums = {dtype: re.findall(r"-> tensor<(?:\S*x)?(\w+)>", _all_reduce_types(text[dtype])) for dtype in text}
    assert sums["float32"].count("bf16") == 0
    assert sums["bfloat16"].count("bf16") == len(jax.tree.leaves(first_state().params))


def _all_reduce_types(program: str) -> str:
    # The type of an all_reduce follows the region that defines its reduction.
    return "\n".join(re.findall(r"stablehlo\.all_reduce.*?\}\) : \(.*?\) (-> .*?)$", program, re.DOTALL | re.MULTILINE))


@MAPPERS
@LOADERS
def test_the_state_is_updated_in_place(mapper, loader):
    program = compiled("train", mapper, loader, sync=False)
    assert program.memory_analysis().alias_size_in_bytes == nbytes(first_state())
    aliased = re.search(r"input_output_alias=\{(.*?)\}, entry", program.as_text()).group(1)
    assert aliased.count("alias)") == len(jax.tree.leaves(first_state()))


@MAPPERS
@LOADERS
def test_a_device_takes_its_part_of_the_batch_and_no_more(mapper, loader):
    program = compiled("train", mapper, loader, sync=False)
    _, data, _ = arguments("train", mapper, loader)
    batch = host_batch(loader, stacked=True)
    # A batch that contains its images needs no index.
    part = sum(value.nbytes for key, value in batch.items() if loader == "device" or key != "index") // 8
    assert program.memory_analysis().argument_size_in_bytes == nbytes(first_state()) + nbytes(data) + part


@MAPPERS
@LOADERS
def test_what_goes_to_the_devices_for_a_step_is_the_bytes_of_the_batch(mapper, loader):
    batch = host_batch(loader, stacked=True)
    placed = parallel.shard_batch(batch, parallel.make_mesh(), mapper, batch_axis=1)
    sent = sum(shard.data.nbytes for leaf in jax.tree.leaves(placed) for shard in leaf.addressable_shards)
    assert sent == nbytes(batch)
    # The state and the data stay on the devices: once all arguments are there, a call transfers nothing.
    program = compiled("train", mapper, loader, sync=False)
    train_state, data, _ = arguments("train", mapper, loader)
    own_state = jax.tree.map(jnp.copy, train_state)
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(program(own_state, data, placed))
