"""Batches: the same from any first step and for any number of processes, each example as often as promised."""

import dataclasses
import itertools
import runpy

import jax
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_jax.data import pipeline
from fer_jax.data.dataset import Split
from fer_jax.recipe.step import fetch


@pytest.fixture(autouse=True, scope="module")
def small_groups():
    """Makes an epoch of a small split consist of several groups of batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_IMAGES_TOGETHER", 12)
        yield


def make_split(num_examples: int) -> Split:
    """Returns examples of random pixels, so that each image identifies its example."""
    generator = np.random.default_rng(num_examples)
    return Split(
        images=generator.integers(0, 256, (num_examples, 48, 48, 1), dtype=np.uint8),
        labels=generator.integers(0, 7, num_examples).astype(np.int32),
        rows=np.arange(num_examples),
    )


def train(split, *, seed=3, batch_size, first=0, last, **options) -> list[dict]:
    """Returns the batches of single steps."""
    calls = pipeline.train_batches(split, seed=seed, batch_size=batch_size, first_step=first, last_step=last, **options)
    return [{key: value[i] for key, value in call.items()} for call in calls for i in range(len(call["index"]))]


def epoch_order(split, *, seed, epoch, batch_size) -> list[int]:
    per_epoch = split.steps_per_epoch(batch_size)
    batches = train(split, seed=seed, batch_size=batch_size, first=epoch * per_epoch, last=(epoch + 1) * per_epoch)
    assert len(batches) == per_epoch
    return np.concatenate([batch["index"] for batch in batches]).tolist()


def assert_same_batches(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def join_processes(parts: list[list[dict]]) -> list[dict]:
    """Concatenates the processes' parts of each batch."""
    return [
        {key: np.concatenate([part[key] for part in batch]) for key in batch[0]} for batch in zip(*parts, strict=True)
    ]


# For tests that build several tf.data graphs per example, which takes most of their time.
few_examples = settings(max_examples=10)
sizes = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@few_examples
@given(sizes, st.integers(0, 2**31 - 1), st.data())
def test_starting_at_any_step_gives_the_batches_of_never_having_stopped(size, seed, data):
    num_examples, batch_size = size
    split = make_split(num_examples)
    last = min(3 * split.steps_per_epoch(batch_size), 40)
    first = data.draw(st.integers(0, last))
    whole = train(split, seed=seed, batch_size=batch_size, last=last)
    assert len(whole) == last
    assert_same_batches(train(split, seed=seed, batch_size=batch_size, first=first, last=last), whole[first:])


@few_examples
@given(sizes, st.integers(0, 100), st.integers(0, 2**31 - 1))
def test_an_epoch_is_a_permutation_cut_into_full_batches(size, epoch, seed):
    num_examples, batch_size = size
    order = epoch_order(make_split(num_examples), seed=seed, epoch=epoch, batch_size=batch_size)
    assert len(order) == num_examples - num_examples % batch_size
    assert len(set(order)) == len(order)
    assert set(order) <= set(range(num_examples))
    # A smaller batch size cuts the same permutation, so the examples left over are the end of the permutation.
    assert epoch_order(make_split(num_examples), seed=seed, epoch=epoch, batch_size=1)[: len(order)] == order


@few_examples
@given(sizes, st.integers(1, 9), st.data())
def test_calls_of_several_steps_hold_the_batches_of_single_ones(size, steps_per_call, data):
    num_examples, batch_size = size
    split = make_split(num_examples)
    per_epoch = split.steps_per_epoch(batch_size)
    epochs = data.draw(st.integers(1, 3))
    first = data.draw(st.integers(0, per_epoch - 1))
    options = {"batch_size": batch_size, "first": first, "last": epochs * per_epoch}
    assert_same_batches(train(split, steps_per_call=steps_per_call, **options), train(split, **options))
    calls = pipeline.train_batches(
        split, seed=0, batch_size=batch_size, first_step=first, last_step=per_epoch, steps_per_call=steps_per_call
    )
    ends = list(itertools.accumulate((len(call["index"]) for call in calls), initial=first))[1:]
    # Calls are aligned with the start of the epoch, even if the first step is in the middle of it.
    assert ends == [end for end in range(steps_per_call, per_epoch, steps_per_call) if end > first] + [per_epoch]


@pytest.mark.parametrize("images_together", [1, 7, 1024])
def test_how_many_batches_are_gathered_together_changes_nothing(images_together, monkeypatch):
    split, options = make_split(40), {"batch_size": 3, "first": 4, "last": 30}
    expected = train(split, **options)
    monkeypatch.setattr(pipeline, "_IMAGES_TOGETHER", images_together)
    assert_same_batches(train(split, **options), expected)


def test_batches_of_indices_point_at_the_images_and_labels_of_whole_ones():
    split = make_split(23)
    whole = train(split, batch_size=5, last=8) + list(pipeline.eval_batches(split, batch_size=5))
    indices = train(split, batch_size=5, last=8, indices_only=True)
    indices += pipeline.eval_batches(split, batch_size=5, indices_only=True)
    assert {frozenset(batch) for batch in indices} == {frozenset({"index"}), frozenset({"index", "mask"})}
    fetched = [jax.device_get(fetch(split.arrays(), batch)) for batch in indices]
    assert_same_batches(fetched, whole)


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    split = make_split(40)
    orders = {
        (seed, epoch): tuple(epoch_order(split, seed=seed, epoch=epoch, batch_size=8))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(set(orders.values())) == 16
    assert tuple(range(40)) not in orders.values()


def test_no_example_is_left_out_for_long():
    split = make_split(40)
    left_out = [set(range(40)) - set(epoch_order(split, seed=0, epoch=epoch, batch_size=16)) for epoch in range(4)]
    assert [len(examples) for examples in left_out] == 4 * [8]
    assert not set.intersection(*left_out)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 30])
def test_images_and_labels_are_those_of_their_index(batch_size):
    split = make_split(23)
    batches = [*pipeline.eval_batches(split, batch_size=batch_size)]
    if batch_size <= len(split):
        batches += train(split, batch_size=batch_size, last=6)
    for batch in batches:
        np.testing.assert_array_equal(batch["image"], split.images[batch["index"]])
        np.testing.assert_array_equal(batch["label"], split.labels[batch["index"]])


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_processes_share_the_batches_of_a_single_one(process_count):
    split = make_split(30)
    alone = train(split, batch_size=8, first=1, last=7)
    parts = [
        train(split, batch_size=8, first=1, last=7, process_index=number, process_count=process_count)
        for number in range(process_count)
    ]
    assert {len(batch["label"]) for part in parts for batch in part} == {8 // process_count}
    assert_same_batches(join_processes(parts), alone)

    alone = list(pipeline.eval_batches(split, batch_size=8))
    parts = [
        list(pipeline.eval_batches(split, batch_size=8, process_index=number, process_count=process_count))
        for number in range(process_count)
    ]
    assert_same_batches(join_processes(parts), alone)


@few_examples
@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from([1, 2, 3, 4]))
def test_evaluation_sees_every_example_once_and_in_order(num_examples, part, process_count):
    split = make_split(num_examples)
    batch_size = part * process_count
    batches = join_processes(
        [
            list(pipeline.eval_batches(split, batch_size=batch_size, process_index=number, process_count=process_count))
            for number in range(process_count)
        ]
    )
    index, mask, images, labels = (
        np.concatenate([batch[key] for batch in batches]) for key in ("index", "mask", "image", "label")
    )
    assert {len(batch["mask"]) for batch in batches} == {batch_size}
    assert len(batches) == -(-num_examples // batch_size)
    # The examples come first, then padding up to a full batch.
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < num_examples)
    np.testing.assert_array_equal(index[mask], np.arange(num_examples))
    np.testing.assert_array_equal(images[mask], split.images)
    np.testing.assert_array_equal(labels[mask], split.labels)


def test_a_training_batch_has_no_mask_since_it_is_always_full():
    for batch in train(make_split(11), batch_size=4, last=6):
        assert "mask" not in batch
        assert len(batch["index"]) == 4


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_batches_are_numpy_arrays_of_the_documented_kind(kind):
    split = make_split(10)
    (batch, *_) = train(split, batch_size=4, last=1) if kind == "train" else pipeline.eval_batches(split, batch_size=4)
    assert all(isinstance(value, np.ndarray) for value in batch.values())
    kinds = {"image": (np.uint8, (4, 48, 48, 1)), "label": (np.int32, (4,)), "index": (np.int32, (4,))}
    kinds |= {"mask": (np.bool_, (4,))} if kind == "eval" else {}
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == kinds


@pytest.mark.parametrize("indices_only", [False, True])
@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_batches_say_which_images_are_copies(indices_only, process_count):
    is_copy = np.arange(11) % 3 == 1
    split = dataclasses.replace(make_split(11), is_copy=is_copy)
    parts = [
        list(
            pipeline.eval_batches(
                split,
                batch_size=4,
                indices_only=indices_only,
                process_index=number,
                process_count=process_count,
            )
        )
        for number in range(process_count)
    ]
    batches = join_processes(parts)
    mask, copies = (np.concatenate([batch[key] for batch in batches]) for key in ("mask", "is_copy"))
    assert copies.dtype == bool
    np.testing.assert_array_equal(copies[mask], is_copy)
    assert ("image" in batches[0]) != indices_only
    assert all("is_copy" not in batch for batch in train(split, batch_size=4, last=2))


def test_training_batches_have_the_targets_of_their_images():
    split = dataclasses.replace(make_split(11), targets=np.random.default_rng(0).random((11, 7), np.float32))
    batches = train(split, batch_size=4, last=6)
    for batch in batches:
        np.testing.assert_array_equal(batch["target"], split.targets[batch["index"]])
    indices = train(split, batch_size=4, last=6, indices_only=True)
    assert_same_batches([jax.device_get(fetch(split.arrays(), batch)) for batch in indices], batches)


def test_tensorflow_is_kept_off_the_gpus(monkeypatch):
    calls = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *args: calls.append(args))
    runpy.run_path(pipeline.__file__)
    assert calls == [([], "GPU")]
