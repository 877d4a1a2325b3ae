"""Measures what the README claims: python -m scripts.benchmark step|augment|pipeline

step      a training step with matrix-product convolutions against XLA's own, on this machine
augment   a training step with augmentation against one without
pipeline  batches on the host, without a network

ResNet-50, batch 64, one device. Variants take turns (A B A B ...) after a round that isn't counted; medians, spread
and the median of the ratios of neighbours are printed. Run it on a machine that does nothing else.
"""

import os
import platform
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from configs import resnet50
from fer_jax import augment, huge_pages, optimizer, parallel, state, steps
from fer_jax.data.dataset import CLASS_NAMES, IMAGE_SHAPE, Split
from fer_jax.models import resnet

BATCH_SIZE = 64


def make_step(*, conv: str = "auto", ranges: augment.Ranges | None = None) -> Callable[[], None]:
    """Gives a function that takes one training step of configs/resnet50.py and waits for it."""
    config = resnet50.get_config()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (parallel.AXIS,))
    model = resnet.make(
        config.model.copy_and_resolve_references().to_dict() | {"conv": conv},
        num_classes=len(CLASS_NAMES),
        axis_name=parallel.AXIS,
        backend=jax.default_backend(),
    )
    schedule = optimizer.make_schedule(config.optimizer, steps_per_epoch=448, num_epochs=config.num_epochs)
    adam = optimizer.make(config.optimizer, schedule)
    train_step = steps.make_train_step(
        model,
        adam,
        schedule=schedule,
        ranges=augment.Ranges(**config.augment) if ranges is None else ranges,
        label_smoothing=0.0,
        seed=0,
        axis_name=parallel.AXIS,
    )
    generator = np.random.default_rng(0)
    batch = parallel.place(
        {
            "image": generator.integers(0, 256, (BATCH_SIZE, *IMAGE_SHAPE), dtype=np.uint8),
            "label": generator.integers(0, 7, BATCH_SIZE).astype(np.int32),
            "index": np.arange(BATCH_SIZE, dtype=np.int32),
            "mask": np.ones(BATCH_SIZE, bool),
        },
        mesh,
        "shard_map",
    )
    train_state = parallel.replicate(state.create(model, adam, seed=0, image_shape=IMAGE_SHAPE), mesh)
    mapped = parallel.map_step(train_step, mesh, "shard_map", donate=True)
    compiled = mapped.lower(train_state, {}, batch).compile()

    def run() -> None:
        nonlocal train_state
        train_state, sums = compiled(train_state, {}, batch)
        jax.block_until_ready(sums)

    return run


def compare(variants: dict[str, Callable[[], None]], *, rounds: int, images: int) -> None:
    """Times the variants in turn and prints a table; the first is what the others are held against."""
    seconds = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}, {rounds} rounds"
    )
    print(f"{'':<24}{'median ms':>12}{'min..max ms':>20}{'images/s':>14}{'times the first':>18}")
    first = np.array(next(iter(seconds.values())))
    for name, values in seconds.items():
        values = np.array(values)
        spread = f"{values.min() * 1e3:.1f}..{values.max() * 1e3:.1f}"
        print(
            f"{name:<24}{np.median(values) * 1e3:>12.1f}{spread:>20}{images / np.median(values):>14,.0f}"
            f"{np.median(values / first):>18.3f}"
        )


def benchmark_step() -> None:
    compare({"matrix products": make_step(conv="matmul"), "XLA's": make_step(conv="lax")}, rounds=5, images=BATCH_SIZE)


def benchmark_augment() -> None:
    key, ranges = jax.random.key(0), augment.Ranges(**resnet50.get_config().augment)
    images = jnp.ones((BATCH_SIZE, *IMAGE_SHAPE))
    keys = jax.random.split(key, BATCH_SIZE)
    alone = jax.jit(lambda keys, images: jax.vmap(augment.augment, (0, 0, None))(keys, images, ranges))
    compare(
        {
            "step": make_step(),
            "augmentation alone": lambda: jax.block_until_ready(alone(keys, images)),
        },
        rounds=20,
        images=BATCH_SIZE,
    )


def benchmark_pipeline() -> None:
    from fer_jax.data import pipeline

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (28_709, *IMAGE_SHAPE), dtype=np.uint8)
    split = Split(images, generator.integers(0, 7, len(images)).astype(np.int32), np.arange(len(images)))
    for batch_size in (64, 1024):
        num_images = 1_024 * 1_000
        batches = pipeline.train_batches(
            split, seed=0, batch_size=batch_size, first_step=0, last_step=10 * num_images // batch_size
        )

        def take(batches=batches, number=num_images // batch_size) -> None:
            for _ in range(number):
                next(batches)

        print(f"batch size {batch_size}")
        compare({"tf.data": take}, rounds=5, images=num_images)


PARTS = {"step": benchmark_step, "augment": benchmark_augment, "pipeline": benchmark_pipeline}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PARTS:
        sys.exit(__doc__)
    huge_pages.restart_with()
    PARTS[sys.argv[1]]()
