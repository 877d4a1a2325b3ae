"""A state of a few leaves is saved and restored: which checkpoints are kept, and that they are restored bit for bit."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from fer_jax import parallel
from fer_jax.errors import StorageError, UserError
from fer_jax.recipe.state import TrainState
from fer_jax.workdir import checkpoints as checkpoint_lib
from fer_jax.workdir.checkpoints import Checkpoints, Damaged
from fer_jax.workdir.paths import Workdir
from tests.support.commands import run_script

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01, weight_decay=0.1))


def make_state(step: int = 0, *, size: int = 5, seed: int = 0) -> TrainState:
    """Returns a state like that of training, replicated on every device, with leaves that `update` changes."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {"head": {"kernel": jax.random.normal(keys[0], (size, 7)), "bias": jax.random.normal(keys[1], (7,))}}
    batch_stats = {"norm": {"mean": jax.random.normal(keys[2], (size,)), "var": jax.random.uniform(keys[3], (size,))}}
    state = TrainState(jnp.int32(step), params, batch_stats, OPTIMIZER.init(params))
    return parallel.replicate(state, parallel.make_mesh())


@functools.partial(jax.jit, donate_argnums=0)
def update(state: TrainState) -> TrainState:
    """Changes every leaf, in the memory of the previous state, which is donated."""
    updates, opt_state = OPTIMIZER.update(jax.tree.map(jnp.sin, state.params), state.opt_state, state.params)
    return TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=jax.tree.map(lambda x: 0.9 * x + 0.1, state.batch_stats),
        opt_state=opt_state,
    )


def on_host(tree):
    """Returns a copy that shares no memory with `tree`."""
    return jax.tree.map(lambda x: np.array(x, copy=True), tree)


def assert_identical(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=jax.tree_util.keystr(path))


def kept(directory) -> list[int]:
    """Returns the steps whose folders are in a workdir's checkpoints; all saves must have ended."""
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


def save_all(directory, saves: dict[int, bool]) -> None:
    """Saves a state for each step, in order. saves: {step: whether it is the best so far}."""
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
        # Steps 9 and 11 are within an epoch, where the accuracy is unknown.
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


def test_find_names_what_there_is(two_checkpoints):
    with Checkpoints(Workdir(two_checkpoints), read_only=True) as checkpoints:
        assert [checkpoints.find("1"), checkpoints.find("2")] == [1, 2]
        for which in ("3", "-2", "2.0", "", "newest"):
            with pytest.raises(UserError, match=f"has no checkpoint '{which}'; there are: 1, 2$") as error:
                checkpoints.find(which)
            assert str(two_checkpoints) in str(error.value)


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
    # Training continues from it as from the state that was saved.
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
            assert kernel.is_deleted()  # its memory was indeed donated
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
    metadata = {
        "config": {"seed": 0, "optimizer": {"learning_rate": 1e-3, "clip_norm": None}},
        "class_names": ["angry", "überrascht"],
        "validation": {"loss": 0.1 + 0.2, "accuracy": 1 / 3},
        "progress": {"should_stop": False, "best_epoch": None},
    }
    before = json.dumps(metadata)
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        checkpoints.save(make_state(1), metadata, is_best=True)
        checkpoints.save(make_state(2), metadata | {"validation": None}, is_best=False)
        assert checkpoints.metadata(1) == metadata
        assert checkpoints.metadata(2) == metadata | {"validation": None}
    assert json.dumps(metadata) == before


# Ways to damage a file: it is missing, is cut in half, has a flipped bit, or comes from another checkpoint.
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
    """Returns a workdir with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    save_all(folder, {1: True, 2: False})
    return folder


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from TensorStore objects, freed later
@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_checkpoint_is_never_taken_for_whole(fault, two_checkpoints, tmp_path):
    """Damages each of its files in turn: restoring returns the state that was saved, or raises Damaged."""
    files = [path for path in sorted((two_checkpoints / "checkpoints" / "2").rglob("*")) if path.is_file()]
    assert len(files) > 8
    detected = 0
    for number, path in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(two_checkpoints, folder)
        broken = folder / path.relative_to(two_checkpoints)
        # The file of the same name in the other checkpoint, or, if names are random, one of the same folder.
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
    assert detected >= 3  # at least the record, the weights and the training state


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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from TensorStore objects, freed later
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


def test_a_checkpoint_that_can_not_be_read_now_is_not_taken_for_damaged(tmp_path):
    """Reads a checkpoint without a free file descriptor, in a separate process."""
    save_all(tmp_path, {1: True})
    script = """
import os, resource, sys
from fer_jax.errors import StorageError
from fer_jax.workdir.checkpoints import Checkpoints
from fer_jax.workdir.paths import Workdir
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
with Checkpoints(Workdir(sys.argv[1]), read_only=True) as checkpoints:
    checkpoints.metadata(1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
    try:
        while True:
            os.dup(0)
    except OSError:
        pass
    try:
        checkpoints.metadata(1)
    except StorageError as error:
        os.write(1, str(error).encode())
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
"""
    status, out, err = run_script(script, tmp_path)
    assert status == 0, err
    assert "Too many open files" in out


def test_where_no_record_knows_the_best_it_is_the_first_with_the_highest_accuracy(tmp_path):
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        for step, accuracy in ((1, 0.5), (2, 0.7)):
            checkpoints.save(make_state(step), {"validation": {"accuracy": accuracy}}, is_best=True)
        checkpoints.save(make_state(3), {"validation": {"accuracy": 0.6}}, is_best=False)
        checkpoints.set_aside(2)
        assert checkpoints.steps == [3]
        assert checkpoints.best_step == 3


@pytest.mark.parametrize(("accuracy", "best"), [(0.55, 12), (0.5, 5), (0.4, 5), (None, 5)])
def test_a_newer_checkpoint_may_be_the_best_of_what_is_left(accuracy, best, tmp_path):
    last = (12, accuracy and {"accuracy": accuracy}, False)
    for workdir, saves in (
        (tmp_path / "one", [(5, {"accuracy": 0.5}, True)]),
        (tmp_path / "run", [(10, {"accuracy": 0.7}, True), last]),
    ):
        with Checkpoints(Workdir(workdir)) as checkpoints:
            for step, validation, is_best in saves:
                checkpoints.save(make_state(step), {"validation": validation}, is_best=is_best)
    shutil.copytree(tmp_path / "one" / "checkpoints" / "5", tmp_path / "run" / "checkpoints" / "5")
    with Checkpoints(Workdir(tmp_path / "run")) as checkpoints:
        assert checkpoints.best_step == 10
        checkpoints.set_aside(10)
        assert checkpoints.steps == [12, 5]
        assert checkpoints.best_step == best
    with Checkpoints(Workdir(tmp_path / "run"), read_only=True) as checkpoints:
        assert checkpoints.best_step == best


def test_a_step_that_is_damaged_twice_is_set_aside_twice(tmp_path):
    for expected in ("2", "2-2", "2-3"):
        save_all(tmp_path, {2: False})
        with Checkpoints(Workdir(tmp_path)) as checkpoints:
            assert checkpoints.set_aside(2) == tmp_path / "damaged" / expected
            assert checkpoints.steps == []


# {last action of a process that is killed while it saves step 5 again: the folders in (checkpoints, replaced)}.
KILLED_AFTER = {
    "moving the old one": (["4"], ["5"]),
    "beginning the new one": (["4", "5.orbax-checkpoint-tmp"], ["5"]),
    "committing the new one": (["4", "5"], ["5"]),
    "deleting the old one": (["4", "5"], []),
}


@pytest.mark.parametrize("moment", KILLED_AFTER)
def test_a_crash_while_a_step_is_saved_again_leaves_one_whole_checkpoint(moment, tmp_path):
    old, new, workdir = tmp_path / "old", tmp_path / "new", tmp_path / "run"
    save_all(old, {4: True, 5: False})
    with Checkpoints(Workdir(new)) as checkpoints:
        checkpoints.save(make_state(5, seed=50), {"number": 50}, is_best=False)
    here, replaced = KILLED_AFTER[moment]
    (workdir / "replaced").mkdir(parents=True)
    for name in here:
        source = new if name.startswith("5") else old
        shutil.copytree(source / "checkpoints" / name[0], workdir / "checkpoints" / name)
    for name in replaced:
        shutil.copytree(old / "checkpoints" / name, workdir / "replaced" / name)
    seed = 50 if "5" in here else 5
    with Checkpoints(Workdir(workdir)) as checkpoints:
        assert checkpoints.steps == [5, 4]
        assert checkpoints.metadata(5) == {"number": seed}
        assert_identical(checkpoints.restore(5, make_state()), make_state(5, seed=seed))
    assert not (workdir / "replaced").exists()
    assert kept(workdir) == [4, 5]


# This script exits at once, as if killed, before Orbax begins to write the new checkpoint or after it committed it.
KILLED_WHILE_SAVING = """
import os, sys
from orbax.checkpoint import CheckpointManager
from fer_jax.workdir.checkpoints import Checkpoints
from fer_jax.workdir.paths import Workdir
from tests.workdir.test_checkpoints import make_state

save = CheckpointManager.save

def save_and_end(manager, *args, **kwargs):
    if sys.argv[2] == "after":
        save(manager, *args, **kwargs)
        manager.wait_until_finished()
    os._exit(9)

with Checkpoints(Workdir(sys.argv[1])) as checkpoints:
    CheckpointManager.save = save_and_end
    checkpoints.save(make_state(5, seed=50), {"number": 50}, is_best=True)
"""


@pytest.mark.parametrize(("moment", "seed"), [("before", 5), ("after", 50)])
def test_a_process_killed_before_or_after_the_new_checkpoint_is_committed_leaves_one(moment, seed, tmp_path):
    save_all(tmp_path, {5: True})
    status, _, err = run_script(KILLED_WHILE_SAVING, tmp_path, moment)
    assert status == 9, err
    assert (tmp_path / "replaced" / "5").exists()
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert checkpoints.steps == [5]
        assert_identical(checkpoints.restore(5, make_state()), make_state(5, seed=seed))
    assert kept(tmp_path) == [5]


FULL_DISK = """
import os, resource, signal, sys
from fer_jax.errors import StorageError
from fer_jax.workdir.checkpoints import Checkpoints
from fer_jax.workdir.paths import Workdir
from tests.workdir.test_checkpoints import make_state

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    with Checkpoints(Workdir(sys.argv[1])) as checkpoints:
        checkpoints.save(make_state(5, size=100_000), {}, is_best=True)
except StorageError as error:
    print(error, flush=True)
    os._exit(4)
"""


def test_a_full_disk_is_a_storage_error_and_the_old_checkpoint_stays(tmp_path):
    save_all(tmp_path, {5: True})
    status, out, err = run_script(FULL_DISK, tmp_path)
    assert status == 4, err
    assert out.startswith(f"{tmp_path / 'checkpoints'}: a checkpoint can't be written: ")
    assert "File too large" in out
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert_identical(checkpoints.restore(5, make_state()), make_state(5, seed=5))


def test_a_mistake_of_ours_is_no_storage_error(tmp_path):
    with Checkpoints(Workdir(tmp_path)) as checkpoints, pytest.raises(TypeError):
        checkpoints.save(make_state(1), {"not JSON": {1, 2}}, is_best=True)


def test_a_folder_that_may_not_be_read_is_not_damaged(two_checkpoints, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("PERMISSION_DENIED: Error opening local file")

    with Checkpoints(Workdir(two_checkpoints), read_only=True) as checkpoints:
        monkeypatch.setattr(ocp.CheckpointManager, "restore", refuse)
        with pytest.raises(StorageError, match="2 can't be read: PERMISSION_DENIED"):
            checkpoints.restore(2, make_state())


def snapshot(folder) -> dict:
    """Returns {path: modification time} of a folder and all paths in it, which shows whether anything was written."""
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_a_reader_changes_nothing(two_checkpoints, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    (workdir / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()
    shutil.copytree(workdir / "checkpoints" / "1", workdir / "replaced" / "4")  # another process is saving it
    before = snapshot(workdir)
    with Checkpoints(Workdir(workdir), read_only=True) as checkpoints:
        assert checkpoints.steps == [2, 1]
        assert_identical(checkpoints.restore(checkpoints.find("best"), make_state()), make_state(1, seed=1))
        with pytest.raises(ValueError, match="read only"):
            checkpoints.save(make_state(5), {}, is_best=True)
        with pytest.raises(ValueError, match="read only"):
            checkpoints.set_aside(2)
    assert snapshot(workdir) == before


def test_a_reader_makes_no_folder(tmp_path):
    with Checkpoints(Workdir(tmp_path / "run"), read_only=True) as checkpoints:
        assert checkpoints.steps == []
        assert checkpoints.best_step is None
        with pytest.raises(UserError, match="no checkpoint 'best'; there are: none"):
            checkpoints.find("best")
    assert not (tmp_path / "run").exists()


def test_an_average_of_the_weights_is_kept_beside_them(tmp_path):
    state = make_state(1)
    state = state.replace(ema=jax.tree.map(lambda x: 2 * x, state.variables))
    expected = on_host(state)
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        checkpoints.save(state, {}, is_best=True)
    with Checkpoints(Workdir(tmp_path), read_only=True) as checkpoints:
        assert_identical(checkpoints.restore(1, state), expected)
        assert_identical(checkpoints.restore_weights(1, state.variables), expected.variables)
        assert_identical(checkpoints.restore_weights(1, state.variables, is_ema=True), expected.ema)
    # A run with averaged weights can't go on from a checkpoint without them.
    save_all(tmp_path, {2: False})
    with Checkpoints(Workdir(tmp_path), read_only=True) as checkpoints, pytest.raises(Damaged):
        checkpoints.restore(2, state)


def test_the_best_of_what_is_left_is_by_the_score_that_the_run_selects_by(tmp_path):
    validations = {
        1: {"accuracy": 0.9, "score": 0.5},
        2: {"accuracy": 0.6, "score": 0.6},
        3: {"accuracy": 0.7, "score": 0.7},
    }
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        for step, validation in validations.items():
            checkpoints.save(make_state(step), {"validation": validation}, is_best=True)
    assert kept(tmp_path) == [2, 3]
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        checkpoints.set_aside(3)
        assert checkpoints.best_step == 2
