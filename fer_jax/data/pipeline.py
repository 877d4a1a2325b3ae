"""Makes batches on the host with tf.data. Each is a function of (seed, step) alone, so there is no state to save.

A batch is {image: uint8 [batch, height, width, channels], label: int32 [batch], index: int32 [batch]}, numpy arrays;
`index` is the example's position in its split. If the split has targets, there is target: float32 [batch, classes].
An evaluation batch also has mask: bool [batch], False for padding, and is_copy: bool [batch], if the split has it. If
the split is already on the devices (`indices_only`), a batch has no image, label or target. With several processes,
each gets its contiguous part of the same global batch.
"""

import contextlib
import os
from collections.abc import Iterator

from fer_jax.data.dataset import Split

# No operation here uses oneDNN, but TensorFlow would announce oneDNN's operations at length.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """Keeps TensorFlow from importing Keras in the body: Keras takes a second to load scikit-learn, unused here."""
    # TensorFlow goes on without a Keras that it can't import, and the older Keras is a separate package that few have.
    # The variable is read again when somebody uses tf.keras, which then works as usual.
    name = "TF_USE_LEGACY_KERAS"
    has_chosen = name in os.environ
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if not has_chosen:
            del os.environ[name]


with _without_keras():
    import tensorflow as tf

# The accelerators belong to JAX.
tf.config.set_visible_devices([], "GPU")

# Small batches are gathered in groups of up to this many images, since each element of tf.data costs TensorFlow 0.1 ms.
_IMAGES_TOGETHER = 1024


def train_batches(
    split: Split,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    last_step: int,
    steps_per_call: int = 1,
    indices_only: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict]:
    """Yields this process's part of the batches of steps first_step..last_step - 1, stacked: [steps, batch, ...].

    Each epoch is a permutation of the split keyed by (seed, epoch); `index_shuffle` computes any one position of it.
    batch_size: of the global batch, a multiple of process_count. steps_per_call: the number of steps whose batches are
    yielded together, counted from the start of each epoch, so the last call of an epoch may have fewer. If first_step
    is within a call, the first item has the rest of that call.
    """
    source = {} if indices_only else _constants(split.arrays())
    per_epoch = split.steps_per_epoch(batch_size)
    group = steps_per_call * max(1, _IMAGES_TOGETHER // (batch_size * steps_per_call))  # steps gathered together
    groups_per_epoch = -(-per_epoch // group)

    def gather(number):
        epoch, first = number // groups_per_epoch, number % groups_per_epoch * group
        steps = tf.range(first, tf.minimum(first + group, per_epoch))
        positions = steps[:, None] * batch_size + _positions(batch_size, process_index, process_count)
        # The order is a function of (seed, epoch), so any step can be computed alone after a restart.
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        last = tf.constant(len(split) - 1, tf.int64)
        # index_shuffle accepts no matrix.
        index = tf.reshape(
            tf.random.experimental.index_shuffle(tf.reshape(positions, [-1]), key, last), tf.shape(positions)
        )
        return _gather(source, index)

    def place(step):
        """Returns the group that contains a step, and the step's position in that group."""
        epoch, step = divmod(step, per_epoch)
        return epoch * groups_per_epoch + step // group, step % group

    (first_group, skipped), (last_group, _) = place(first_step), place(last_step - 1)
    groups = _iterate(tf.data.Dataset.range(first_group, last_group + 1), gather)

    def calls():
        step = first_step - skipped
        for batches in groups:
            num_steps = len(batches["index"])
            for first in range(0, num_steps, steps_per_call):
                start, end = max(first, first_step - step), min(first + steps_per_call, last_step - step)
                if start < end:
                    yield {key: array[start:end] for key, array in batches.items()}
            step += num_steps

    return calls()


def eval_batches(
    split: Split, *, batch_size: int, indices_only: bool = False, process_index: int = 0, process_count: int = 1
) -> Iterator[dict]:
    """Yields this process's part of the split in order, every example once; the last batch is padded and masked."""
    source = {} if indices_only else _constants(split.arrays())
    if split.is_copy is not None:
        # is_copy is not one of the split's arrays, which are put on the devices, because training doesn't use it.
        source |= _constants({"is_copy": split.is_copy})

    def batch(number):
        positions = number * batch_size + _positions(batch_size, process_index, process_count)
        # Padding repeats the last example.
        return _gather(source, tf.minimum(positions, len(split) - 1)) | {"mask": positions < len(split)}

    return _iterate(tf.data.Dataset.range(-(-len(split) // batch_size)), batch)


def _positions(batch_size: int, process_index: int, process_count: int):
    part = batch_size // process_count
    return tf.range(process_index * part, (process_index + 1) * part, dtype=tf.int64)


def _constants(arrays: dict) -> dict:
    # Keeps the arrays off a GPU that TensorFlow might see, because it belongs to JAX.
    with tf.device("CPU"):
        return {key: tf.constant(array) for key, array in arrays.items()}


def _gather(source: dict, index) -> dict:
    return {key: tf.gather(array, index) for key, array in source.items()} | {"index": tf.cast(index, tf.int32)}


def _iterate(numbers: tf.data.Dataset, batch) -> Iterator[dict]:
    # Two threads copy large batches faster than one; more would only take cores from the training step.
    return numbers.map(batch, num_parallel_calls=2, deterministic=True).prefetch(4).as_numpy_iterator()
