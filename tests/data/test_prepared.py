import os
import pathlib
import shutil
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fer_jax.data import files, prepared
from fer_jax.data.dataset import CLASS_NAMES, Dataset
from fer_jax.errors import StorageError, UserError
from fer_jax.system.terminal import Terminal
from tests.support.commands import Forked, run_script

# Prints that it is ready, waits until a file exists, loads the dataset and prints its fingerprint.
LOAD = """
import os, sys, time
from fer_jax.data import prepared
print("ready", flush=True)
while not os.path.exists(sys.argv[3]):
    time.sleep(0.001)
print(prepared.load(sys.argv[1], sys.argv[2]).fingerprint)
"""


@pytest.fixture
def faces(tmp_path, csv_bytes, random_images) -> pathlib.Path:
    """Writes a csv of 30 rows, 10 of each split in turn."""
    path = tmp_path / "faces.csv"
    usages = ["Training", "PrivateTest", "PublicTest"] * 10
    path.write_bytes(csv_bytes(random_images(30), [row % 7 for row in range(30)], usages))
    return path


@pytest.fixture
def cache(tmp_path) -> pathlib.Path:
    return tmp_path / "cache"


def assert_equal(dataset: Dataset, expected: Dataset) -> None:
    assert dataset.name == expected.name
    assert dataset.fingerprint == expected.fingerprint
    for field in ("note", "class_names", "image_shape", "path"):
        assert getattr(dataset, field) == getattr(expected, field)
    assert list(dataset.splits) == list(expected.splits)
    for name, split in expected.splits.items():
        for field in ("images", "labels", "rows"):
            found, wanted = getattr(dataset.splits[name], field), getattr(split, field)
            assert found.dtype == wanted.dtype
            assert found.flags.writeable == wanted.flags.writeable
            np.testing.assert_array_equal(found, wanted)


def prepared_copies(cache: pathlib.Path) -> list[pathlib.Path]:
    return sorted(cache.glob("fer2013-*"))


def state(folder: pathlib.Path) -> dict[pathlib.Path, tuple[int, int]]:
    """Returns the inode and the modification time of each file below a folder, which show whether it was rewritten."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_csv_is_loaded_as_it_is_read_at_first_and_from_the_prepared_copy(faces, cache, capsys):
    expected = files.read_published(faces)
    assert_equal(prepared.load(faces, cache, terminal=Terminal(is_primary=True)), expected)
    (folder,) = prepared_copies(cache)
    assert capsys.readouterr() == (f"Preparing {expected.name} in {folder}, once for all runs.\n", "")
    before = state(cache)
    assert_equal(prepared.load(faces, cache, terminal=Terminal(is_primary=True)), expected)
    assert state(cache) == before
    assert capsys.readouterr() == ("", "")


def test_a_folder_is_loaded_as_it_is_read(tmp_path, cache, random_images):
    for number, image in enumerate(random_images(40)):
        path = tmp_path / f"faces/{'test' if number % 4 == 0 else 'train'}/{CLASS_NAMES[number % 7]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:, :, 0]).save(path)
    for _ in range(2):
        assert_equal(prepared.load(tmp_path / "faces", cache), files.read_published(tmp_path / "faces"))
    assert len(prepared_copies(cache)) == 1


def test_files_that_tell_no_splits_are_kept_as_they_are(tmp_path, cache, csv_bytes, random_images):
    path = tmp_path / "train.csv"
    path.write_bytes(csv_bytes(random_images(40), [0, 1] * 20, [""] * 40, header="emotion,pixels"))
    for _ in range(2):
        dataset = prepared.load(path, cache)
        assert_equal(dataset, files.read_published(path))
        assert list(dataset.splits) == ["unsplit"]
    assert len(prepared_copies(cache)) == 1


def test_the_name_follows_the_path_and_the_copy_the_content(faces, cache):
    prepared.load(faces, cache)
    moved = faces.rename(faces.with_name("moved.csv"))
    assert prepared.load(moved, cache).name == "moved.csv"
    assert len(prepared_copies(cache)) == 1
    moved.write_bytes(moved.read_bytes().replace(b"\n6,", b"\n5,"))
    assert_equal(prepared.load(moved, cache), files.read_published(moved))
    assert len(prepared_copies(cache)) == 2


def test_what_is_prepared_is_a_tfds_data_set_with_the_rows_in_order(faces, cache):
    expected = prepared.load(faces, cache)
    (folder,) = prepared_copies(cache)
    builder = tfds.builder_from_directory(folder / "fer2013" / "2.0.0")
    assert builder.info.features["label"].names == list(CLASS_NAMES)
    assert builder.info.supervised_keys == ("image", "label")
    for name, split in expected.splits.items():
        examples = list(builder.as_data_source(name))
        assert [example["row"] for example in examples] == split.rows.tolist()
        assert [example["label"] for example in examples] == split.labels.tolist()
        np.testing.assert_array_equal(np.stack([example["image"] for example in examples]), split.images)


def test_preparing_prints_nothing(faces, cache, capfd):
    prepared.load(faces, cache)
    prepared.load(faces, cache)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["with blank", "100% [a-z]*", "relative/below"])
def test_any_folder_will_do_as_cache(faces, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert_equal(prepared.load(faces.name, name), files.read_published(faces))
    assert len(prepared_copies(tmp_path / name)) == 1


def start_loading(number: int, path: pathlib.Path, cache: pathlib.Path) -> list[Forked]:
    """Starts `number` processes that load `path`, all at once, with TensorFlow already imported."""
    go = path.with_name("go")
    processes = [Forked(LOAD, [str(path), str(cache), str(go)], dict(os.environ)) for _ in range(number)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    go.touch()
    return processes


def record_file(folder: pathlib.Path) -> pathlib.Path:
    (path,) = folder.rglob("*train.array_record*")
    return path


def truncate(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_bit(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_file(folder: pathlib.Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


DAMAGE = {
    "truncated records": lambda folder: truncate(record_file(folder)),
    "emptied records": lambda folder: record_file(folder).write_bytes(b""),
    "a flipped bit": lambda folder: flip_bit(record_file(folder)),
    "no records": lambda folder: record_file(folder).unlink(),
    "no description": lambda folder: next(folder.rglob("dataset_info.json")).unlink(),
    "truncated description": lambda folder: truncate(next(folder.rglob("features.json"))),
    "no manifest": lambda folder: (folder / "prepared.json").unlink(),
    "truncated manifest": lambda folder: truncate(folder / "prepared.json"),
    "another manifest": lambda folder: (folder / "prepared.json").write_text("[1]"),
    "an empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "a file in its place": replace_by_file,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_copy_is_found_out_and_prepared_again(faces, cache, damage, capsys):
    expected = prepared.load(faces, cache)
    (folder,) = prepared_copies(cache)
    damage(folder)
    assert_equal(prepared.load(faces, cache, terminal=Terminal(is_primary=True)), expected)
    assert capsys.readouterr().err == f"fer_jax: warning: {folder} is damaged; it is prepared again.\n"
    before = state(cache)
    assert_equal(prepared.load(faces, cache), expected)
    assert state(cache) == before
    assert list(cache.iterdir()) == [folder]


def test_what_a_killed_process_leaves_is_not_taken_for_a_copy(tmp_path, cache, csv_bytes, random_images):
    path = tmp_path / "faces.csv"
    path.write_bytes(csv_bytes(random_images(6000), [0] * 6000, ["Training", "PublicTest"] * 3000))
    (process,) = start_loading(1, path, cache)
    while process.poll() is None and not list(cache.glob(".preparing-*/copy/*/*/*array_record*")):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert prepared_copies(cache) == [], "the process was killed too late for this test to say anything"
    leftovers = list(cache.glob(".preparing-*"))
    assert len(leftovers) == 1
    assert_equal(prepared.load(path, cache), files.read_published(path))
    assert len(prepared_copies(cache)) == 1
    assert list(cache.glob(".preparing-*")) == leftovers  # they could belong to a process that is still running


def test_what_was_left_a_day_ago_is_removed(faces, cache):
    for name in (".preparing-old", ".preparing-new", "other"):
        (cache / name / "copy").mkdir(parents=True)
    a_day_ago = time.time() - 25 * 60 * 60
    os.utime(cache / ".preparing-old", (a_day_ago, a_day_ago))
    os.utime(cache / "other", (a_day_ago, a_day_ago))
    prepared.load(faces, cache)
    assert sorted(path.name for path in cache.iterdir() if path not in prepared_copies(cache)) == [
        ".preparing-new",
        "other",
    ]


def test_processes_that_prepare_at_once_all_get_the_data_set(faces, cache):
    processes = start_loading(2, faces, cache)
    outputs = [process.communicate()[0].strip() for process in processes]
    assert outputs == [files.read_published(faces).fingerprint] * 2
    assert [process.returncode for process in processes] == [0] * 2
    before = state(cache)
    assert_equal(prepared.load(faces, cache), files.read_published(faces))
    assert state(cache) == before
    assert list(cache.iterdir()) == prepared_copies(cache)


def test_a_wrong_source_is_a_user_error_and_leaves_nothing(tmp_path, faces, cache):
    with pytest.raises(UserError, match=r"missing\.csv: there is no such file"):
        prepared.load(tmp_path / "missing.csv", cache)
    faces.write_bytes(faces.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"faces\.csv: row 31: "):
        prepared.load(faces, cache)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path, faces):
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(StorageError, match=r"file.*: the prepared data set can't be kept in this folder \("):
            prepared.load(faces, cache)
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(StorageError, match=r"link: the prepared data set can't be kept in this folder \("):
        prepared.load(faces, tmp_path / "link")


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(faces, cache):
    code = (
        "import resource, signal, sys; from fer_jax.data import prepared; from fer_jax.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"  # a write beyond it fails, as on a full disk
        "try: prepared.load(sys.argv[1], sys.argv[2])\n"
        "except StorageError as error: print(error)\n"
    )
    status, out, err = run_script(code, faces, cache)
    assert status == 0, err
    assert out.startswith(f"{cache}: the prepared data set can't be kept in this folder (")
    assert "File too large" in out
    assert len(out.splitlines()) == 1
    assert list(cache.iterdir()) == []
