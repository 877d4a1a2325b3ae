"""Saving and restoring, on a state of a few leaves: what is kept, and that it comes back bit for bit."""

import errno
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fer_jax import parallel
from fer_jax.errors import StorageError, UserError
from fer_jax.recipe import optimizer
from fer_jax.recipe.state import TrainState
from fer_jax.workdir import checkpoints as checkpoint_lib
from fer_jax.workdir.checkpoints import Checkpoints, Damaged
from fer_jax.workdir.paths import Workdir

OPTIMIZER = optimizer.make_optimizer({"clip_norm": 1.0, "weight_decay": 0.1}, optax.constant_schedule(0.01))


def make_state(step: int = 0, *, size: int = 5, seed: int = 0) -> TrainState:
    """Returns a state as training has it, on every device, with leaves that `update` changes."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {"head": {"kernel": jax.random.normal(keys[0], (size, 7)), "bias": jax.random.normal(keys[1], (7,))}}
    batch_stats = {"norm": {"mean": jax.random.normal(keys[2], (size,)), "var": jax.random.uniform(keys[3], (size,))}}
    state = TrainState(jnp.int32(step), params, batch_stats, OPTIMIZER.init(params))
    return parallel.replicate(state, parallel.make_mesh())


@functools.partial(jax.jit, donate_argnums=0)
def update(state: TrainState) -> TrainState:
    """Changes every leaf, in the memory of the one before."""
    updates, opt_state = OPTIMIZER.update(jax.tree.map(jnp.sin, state.params), state.opt_state, state.params)
    return TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=jax.tree.map(lambda x: 0.9 * x + 0.1, state.batch_stats),
        opt_state=opt_state,
    )


def on_host(tree):
    """A copy that shares no memory with `tree`."""
    return jax.tree.map(lambda x: np.array(x, copy=True), tree)


def assert_identical(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=jax.tree_util.keystr(path))


def kept(directory) -> list[int]:
    """Returns the steps whose folders are in a workdir's checkpoints once all saving is done."""
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


def save_all(directory, saves: dict[int, bool]) -> None:
    """Saves a state of each step, in order; {step: whether it is the best so far}."""
    with Checkpoints(Workdir(directory)) as checkpoints:
        for step, is_best in saves.items():
            checkpoints.save(make_state(step, seed=step), {"number": step}, is_best=is_best)


@pytest.mark.parametrize(
    ("saves", "steps", "best"),
    [
        ({1: True}, [1], 1),
        ({1: True, 2: True}, [1, 2], 2),
        ({1: True, 2: True, 3: False, 4: False, 5: False}, [2, 4, 5], 2),
        ({1: True, 2: False, 3: False, 4: True}, [3, 4], 4),
        ({1: True, 2: False, 3: True, 4: False}, [3, 4], 3),
        # Within an epoch nothing is known of the accuracy: steps 9 and 11 are no end of an epoch.
        ({9: False, 10: True, 11: False}, [10, 11], 10),
    ],
)
def test_the_newest_two_and_the_best_are_kept_and_nothing_else(saves, steps, best, tmp_path):
    save_all(tmp_path, saves)
    assert kept(tmp_path) == steps
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert (checkpoints.best_step, checkpoints.latest_step) == (best, max(saves))
        assert [checkpoints.find("best"), checkpoints.find("latest")] == [best, max(saves)]


def test_what_is_kept_is_the_same_when_every_save_is_by_another_process(tmp_path):
    for step in range(1, 6):
        save_all(tmp_path, {step: step <= 2})
    assert kept(tmp_path) == [2, 4, 5]
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert checkpoints.best_step == 2
        assert_identical(checkpoints.restore(2, make_state()), make_state(2, seed=2))


def test_before_the_first_improvement_there_is_no_best(tmp_path):
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert checkpoints.best_step is None
        assert checkpoints.latest_step is None
        checkpoints.save(make_state(3), {}, is_best=False)
        checkpoints.save(make_state(4), {}, is_best=False)
        assert checkpoints.best_step is None
        assert checkpoints.latest_step == 4
        with pytest.raises(UserError, match="no checkpoint 'best'"):
            checkpoints.find("best")


def test_before_the_first_improvement_only_the_newest_are_kept(tmp_path):
    save_all(tmp_path, {1: False, 2: False, 3: False})
    assert kept(tmp_path) == [2, 3]


def test_saving_a_step_again_replaces_it(tmp_path):
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        checkpoints.save(make_state(4, seed=1), {"epochs": 0}, is_best=True)
        checkpoints.save(make_state(5, seed=2), {"epochs": 0}, is_best=False)
        checkpoints.save(make_state(5, seed=3), {"epochs": 1}, is_best=True)
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert checkpoints.metadata(5) == {"epochs": 1}
        assert checkpoints.best_step == 5
        assert_identical(checkpoints.restore(5, make_state()), make_state(5, seed=3))
    assert kept(tmp_path) == [4, 5]


def test_a_step_saved_again_without_improvement_leaves_the_best_alone(tmp_path):
    save_all(tmp_path, {4: True, 5: False})
    save_all(tmp_path, {5: False})
    assert kept(tmp_path) == [4, 5]
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert checkpoints.best_step == 4


@pytest.mark.parametrize("which", ["3", "-4", "4.0", "", "newest"])
def test_find_names_what_there_is(which, tmp_path):
    save_all(tmp_path, {2: True, 4: False})
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert [checkpoints.find("2"), checkpoints.find("4")] == [2, 4]
        with pytest.raises(UserError, match=f"has no checkpoint '{which}'; there are: 2, 4$") as error:
            checkpoints.find(which)
        assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("which", ["best", "latest", "7"])
def test_find_says_where_there_is_none(which, tmp_path):
    with (
        Checkpoints(Workdir(tmp_path)) as checkpoints,
        pytest.raises(UserError, match=f"no checkpoint '{which}'.*: none"),
    ):
        checkpoints.find(which)


def test_a_restored_state_is_the_saved_one_on_every_device(tmp_path):
    state = make_state()
    for _ in range(3):
        state = update(state)
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        checkpoints.save(state, {}, is_best=False)
        restored = checkpoints.restore(3, make_state(seed=9))
    assert_identical(restored, state)
    for leaf, like in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
        assert len(leaf.addressable_shards) == 8
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, like)
    # Training goes on from it as from the one that was saved.
    assert_identical(update(restored), update(state))


def test_what_is_saved_is_the_state_of_the_moment_though_training_goes_on_in_its_memory(tmp_path):
    state = make_state(size=100_000)
    saved = {}
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        for _ in range(2):
            state = update(state)
            step = int(state.step)
            saved[step] = on_host(state)
            kernel = state.params["head"]["kernel"]
            checkpoints.save(state, {}, is_best=step == 1)
            for _ in range(3):
                state = update(state)
            assert kernel.is_deleted()  # its memory was indeed given away
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert sorted(saved) == [1, 5]
        for step, expected in saved.items():
            assert_identical(on_host(checkpoints.restore(step, state)), expected)


def test_weights_are_restored_without_the_rest_of_the_state(tmp_path):
    state = update(make_state())
    abstract = jax.eval_shape(lambda: {"params": state.params, "batch_stats": state.batch_stats})
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        checkpoints.save(state, {}, is_best=True)
        weights = checkpoints.restore_weights(1, abstract)
    assert_identical(on_host(weights), on_host({"params": state.params, "batch_stats": state.batch_stats}))


def test_what_is_stored_beside_the_weights_comes_back_as_it_was(tmp_path):
    run = {
        "config": {"seed": 0, "optimizer": {"learning_rate": 1e-3, "clip_norm": None}},
        "class_names": ["angry", "überrascht"],
        "validation": {"loss": 0.1 + 0.2, "accuracy": 1 / 3},
        "progress": {"should_stop": False, "best_epoch": None},
    }
    before = json.dumps(run)
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        checkpoints.save(make_state(1), run, is_best=True)
        checkpoints.save(make_state(2), run | {"validation": None}, is_best=False)
        assert checkpoints.metadata(1) == run
        assert checkpoints.metadata(2) == run | {"validation": None}
    assert json.dumps(run) == before


# What happens to a file: the whole of it is gone, cut in half, has a bit turned, or is that of another checkpoint.
def _flip(path, _):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


FAULTS = {
    "missing": lambda path, _: path.unlink(),
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": _flip,
    "foreign": lambda path, other: shutil.copy(other, path),
}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """The workdir of the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    save_all(folder, {1: True, 2: False})
    return folder


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of TensorStore, collected later
@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_checkpoint_is_never_taken_for_whole(fault, two_checkpoints, tmp_path):
    """In each of its files in turn: what comes back is what was saved, or Damaged."""
    files = [path for path in sorted((two_checkpoints / "checkpoints" / "2").rglob("*")) if path.is_file()]
    assert len(files) > 8
    detected = 0
    for number, path in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(two_checkpoints, folder)
        broken = folder / path.relative_to(two_checkpoints)
        # The same file of the other checkpoint, or, where names are random, another of its kind.
        place = path.parent.relative_to(two_checkpoints / "checkpoints" / "2")
        others = sorted(other for other in (two_checkpoints / "checkpoints" / "1" / place).iterdir() if other.is_file())
        FAULTS[fault](broken, next((other for other in others if other.name == path.name), others[0]))
        with Checkpoints(Workdir(folder)) as checkpoints:
            assert checkpoints.steps == [2, 1]
            try:
                assert checkpoints.metadata(2) == {"number": 2}
                assert_identical(checkpoints.restore(2, make_state()), make_state(2, seed=2))
            except Damaged:
                detected += 1
    assert detected >= 3  # the record, the weights and the training state at least


def test_a_damaged_checkpoint_makes_way_for_its_like_and_is_kept(two_checkpoints, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    (folder / "checkpoints" / "2" / "record" / "metadata").write_text("{}")
    with Checkpoints(Workdir(folder)) as checkpoints:
        assert checkpoints.best_step == 1
        with pytest.raises(Damaged, match="step 2 has a record without format or checksum"):
            checkpoints.metadata(2)
        assert checkpoints.set_aside(2) == folder / "damaged" / "2"
        assert checkpoints.steps == [1]
        assert_identical(checkpoints.restore(1, make_state()), make_state(1, seed=1))
        checkpoints.save(make_state(2, seed=2), {"number": 2}, is_best=False)
        assert_identical(checkpoints.restore(2, make_state()), make_state(2, seed=2))
    assert [path.name for path in (folder / "damaged").iterdir()] == ["2"]


def test_what_can_not_be_written_is_a_storage_error_that_says_why(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="checkpoints"):
        save_all(tmp_path, {1: True})


def test_a_checkpoint_of_a_newer_format_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_lib, "FORMAT", 2)
    save_all(tmp_path, {1: True})
    monkeypatch.setattr(checkpoint_lib, "FORMAT", 1)
    with pytest.raises(UserError, match=r"step 1 .* has format 2, made by a newer version; this one reads .* 1"):
        Checkpoints(Workdir(tmp_path))


def test_a_reader_leaves_what_a_run_is_writing(tmp_path):
    save_all(tmp_path, {1: True})
    partial = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    partial.mkdir()
    with Checkpoints(Workdir(tmp_path), read_only=True) as checkpoints:
        assert checkpoints.steps == [1]
    assert partial.exists()
    save_all(tmp_path, {2: False})
    assert kept(tmp_path) == [1, 2]


def damage_weights(workdir, step: int) -> None:
    for path in (workdir / "checkpoints" / str(step) / "weights").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of TensorStore, collected later
def test_the_best_of_what_is_left_is_kept_when_the_best_is_set_aside(tmp_path):
    save_all(tmp_path, {5: True, 10: True})
    damage_weights(tmp_path, 10)
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        with pytest.raises(Damaged):
            checkpoints.restore(10, make_state())
        checkpoints.set_aside(10)
        assert checkpoints.best_step == 5
        for step in (10, 15, 20):
            checkpoints.save(make_state(step, seed=step), {}, is_best=False)
    assert kept(tmp_path) == [5, 15, 20]
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert checkpoints.best_step == 5


def test_where_no_record_knows_the_best_it_is_the_first_with_the_highest_accuracy(tmp_path):
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        for step, accuracy in ((1, 0.5), (2, 0.7)):
            checkpoints.save(make_state(step), {"validation": {"accuracy": accuracy}}, is_best=True)
        checkpoints.save(make_state(3), {"validation": {"accuracy": 0.6}}, is_best=False)
        checkpoints.set_aside(2)
        assert checkpoints.steps == [3]
        assert checkpoints.best_step == 3


# What is there when a process is killed while it saves a step again, by what it did last.
KILLED_AFTER = {"moving the old one": [], "writing the new one": [5], "deleting the old one": [5]}


@pytest.mark.parametrize("moment", KILLED_AFTER)
def test_a_crash_while_a_step_is_saved_again_leaves_one_whole_checkpoint(moment, tmp_path):
    save_all(tmp_path, {4: True, 5: False})
    (tmp_path / "replaced").mkdir()
    if moment != "deleting the old one":
        shutil.copytree(tmp_path / "checkpoints" / "5", tmp_path / "replaced" / "5")
    if moment == "moving the old one":
        shutil.rmtree(tmp_path / "checkpoints" / "5")
        (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert checkpoints.steps == [5, 4]
        assert_identical(checkpoints.restore(5, make_state()), make_state(5, seed=5))
    assert not (tmp_path / "replaced").exists()
    assert kept(tmp_path) == [4, 5]


def test_the_old_checkpoint_is_there_until_the_new_one_is_committed(tmp_path, monkeypatch):
    save_all(tmp_path, {5: True})

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", fail)  # the disk is full when the new one is to be written
        with pytest.raises(StorageError, match="No space left"):
            checkpoints.save(make_state(5, seed=9), {}, is_best=True)
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert_identical(checkpoints.restore(5, make_state()), make_state(5, seed=5))


def test_a_mistake_of_ours_is_no_storage_error(tmp_path):
    with Checkpoints(Workdir(tmp_path)) as checkpoints, pytest.raises(TypeError):
        checkpoints.save(make_state(1), {"not JSON": {1, 2}}, is_best=True)


def test_a_reader_makes_no_folder(tmp_path):
    with Checkpoints(Workdir(tmp_path / "run"), read_only=True) as checkpoints:
        assert checkpoints.steps == []
    assert not (tmp_path / "run").exists()
