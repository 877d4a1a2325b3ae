"""Prepares a dataset of files once with TensorFlow Datasets, and reads it back as arrays within a second.

Importing this module imports TensorFlow, which takes seconds: import it where it is used.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from fer_jax.data import files
from fer_jax.data.dataset import SPLITS, UNSPLIT, Dataset, Split
from fer_jax.errors import StorageError, UserError
from fer_jax.system.terminal import SILENT, Terminal

_MANIFEST = "prepared.json"
_PREPARING = ".preparing-"
_LEFTOVER_AFTER = 24 * 60 * 60  # seconds after which an unfinished preparation is assumed to be abandoned


class _LocalInfo(tfds.core.DatasetInfo):
    """A dataset description that tfds doesn't look up on the network (and makes no temporary folder for)."""

    def initialize_from_bucket(self) -> None:
        pass


class Fer2013(tfds.core.GeneratorBasedBuilder):
    """FER-2013, or other faces, from local files: image uint8 [height, width, 1], label, and row, its position there.

    FER+'s labels, and any other data published about the images, can only be joined by row.
    """

    VERSION = tfds.core.Version("2.0.0")
    # There are no downloads whose checksums tfds would have to look up; the lookup uses importlib_resources, which is
    # not among tfds's requirements.
    url_infos = None

    def __init__(self, dataset: Dataset, **kwargs):
        self._dataset = dataset
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(
            builder=self,
            description="Grey images of faces with one expression each.",
            homepage="https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge",
            features=tfds.features.FeaturesDict(
                {
                    # Stored as bytes: without an encoding tfds stores each pixel as a 64-bit integer.
                    "image": tfds.features.Tensor(shape=self._dataset.image_shape, dtype=np.uint8, encoding="bytes"),
                    "label": tfds.features.ClassLabel(names=self._dataset.class_names),
                    "row": tfds.features.Scalar(dtype=np.int64),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # nothing is downloaded
        return {name: self._generate_examples(split) for name, split in self._dataset.splits.items()}

    def _generate_examples(self, split: Split):
        for image, label, row in zip(split.images, split.labels.tolist(), split.rows.tolist(), strict=True):
            yield row, {"image": image, "label": label, "row": row}


def load(
    path: str | os.PathLike, cache_dir: str | os.PathLike, form: files.Form = files.FER2013, terminal: Terminal = SILENT
) -> Dataset:
    """Returns the dataset of `files.read_published`, from a copy that the first call prepares in `cache_dir`.

    A prepared copy is found by the content of the source, not by its path. A copy that differs in any byte from what
    was prepared is moved away, with a warning, and prepared again. If writing to `cache_dir` is not permitted, no copy
    is kept, and a warning says so. Raises UserError as `files.read_published` does, and StorageError if `cache_dir`
    can't be written for another reason.
    """
    path, cache_dir = pathlib.Path(path), pathlib.Path(cache_dir)
    source = files.identify(path, form)
    prepared = cache_dir / f"fer2013-{Fer2013.VERSION}-{source[:16]}"
    published = None
    try:
        was_there = prepared.exists()
        dataset = _read_prepared(prepared, path)
        if dataset is None:
            if was_there:
                terminal.warn(f"{prepared} is damaged; it is prepared again.")
                _discard(prepared)
            terminal.say(f"Preparing {files.name_of(path)} in {prepared}, once for all runs.")
            published = files.read_published(path, terminal, form)
            dataset = _prepare(published, path, source, prepared, form)
    except (OSError, tf.errors.OpError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        message = f"{cache_dir}: the prepared data set can't be kept in this folder ({reason})"
        advice = "--config.dataset.cache_dir or the environment variable XDG_CACHE_HOME chooses another"
        if not isinstance(error, OSError) or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(f"{message}; {advice}") from error
        terminal.warn(f"{message}, so the files are read anew each time; {advice}.")
        return files.read_published(path, terminal, form) if published is None else published
    return dataset


def _prepare(dataset: Dataset, path: pathlib.Path, source: str, prepared: pathlib.Path, form: files.Form) -> Dataset:
    """Writes the copy `prepared` of the dataset read at `path` and returns the dataset read back from it.

    The copy is written to a temporary folder and renamed once it is complete and checked, so what a killed process
    leaves is never taken for a copy. Two processes that prepare the same source at once each write a copy of their own;
    the first one to finish is kept.
    """
    # Otherwise a csv that is still being copied could be prepared in part, and be found later as if it were the whole.
    if files.identify(path, form) != source:
        raise UserError(f"{path}: it changed while it was being read; start again when it is complete")
    prepared.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(prepared.parent)
    with _temporary_folder(prepared.parent) as folder:
        # Not written in place, because a reader would take a half-written copy for a damaged one.
        copy = folder / "copy"
        _write(dataset, copy)
        checked = _read_prepared(copy, path)
        if checked is None or checked.fingerprint != dataset.fingerprint:
            raise UserError(f"{prepared}: what was written here does not read back the same; is the disk sound?")
        try:
            copy.rename(prepared)
        except OSError:
            if not prepared.is_dir():  # otherwise another process was first
                raise
    return checked


def _discard(prepared: pathlib.Path) -> None:
    """Removes a damaged copy, in one step for all processes that look for it."""
    with _temporary_folder(prepared.parent) as folder, contextlib.suppress(FileNotFoundError):
        prepared.rename(folder / "damaged")


@contextlib.contextmanager
def _temporary_folder(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(prefix=_PREPARING, dir=parent, ignore_cleanup_errors=True) as folder:
        yield pathlib.Path(folder)


def _write(dataset: Dataset, folder: pathlib.Path) -> None:
    tfds.disable_progress_bar()
    builder = Fer2013(dataset, data_dir=folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # tfds prints that it downloads, but it doesn't
            builder.download_and_prepare(
                download_dir=folder.with_name("downloads"),
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except RuntimeError as error:  # raised by array_record when the disk is full
        raise OSError(str(error)) from error
    manifest = {
        "fingerprint": dataset.fingerprint,
        "builder": os.path.relpath(builder.data_dir, folder),
        "files": _digests(folder),
        "note": dataset.note,
        "class_names": dataset.class_names,
        "image_shape": dataset.image_shape,
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _read_prepared(prepared: pathlib.Path, source: pathlib.Path) -> Dataset | None:
    """Returns the dataset of the prepared copy of `source`, or None if there is no copy or it is damaged."""
    try:
        manifest = json.loads((prepared / _MANIFEST).read_bytes())
        folder, fingerprint, digests = prepared / manifest["builder"], manifest["fingerprint"], manifest["files"]
        note, class_names, shape = manifest["note"], tuple(manifest["class_names"]), tuple(manifest["image_shape"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    # Every byte is checked before it is parsed, because the result of parsing damaged records is unpredictable.
    if digests != _digests(prepared):
        return None
    splits = tfds.builder_from_directory(folder).info.splits
    dataset = Dataset(
        files.name_of(source),
        {split: _read_split(splits[split], shape) for split in (*SPLITS, UNSPLIT) if split in splits},
        note,
        class_names,
        shape,
        path=os.path.abspath(source),
    )
    rows = np.sort(np.concatenate([split.rows for split in dataset.splits.values()]))
    is_whole = fingerprint == dataset.fingerprint and np.array_equal(rows, np.arange(len(rows)))
    return dataset if is_whole else None


def _read_split(info: tfds.core.SplitInfo, image_shape: tuple[int, int, int]) -> Split:
    """Reads all records of a split, in the order in which they were written."""
    images, labels, rows = [], [], []
    for path in info.filepaths:
        reader = array_record_module.ArrayRecordReader(os.fspath(path))
        for record in reader.read_all():
            # A loop over protocol buffers takes as long as tf.io.parse_example (0.2 s), which would start TensorFlow's
            # runtime, and that would claim the memory of the accelerators.
            feature = tf.train.Example.FromString(record).features.feature
            images.append(feature["image"].bytes_list.value[0])
            labels.append(feature["label"].int64_list.value[0])
            rows.append(feature["row"].int64_list.value[0])
        reader.close()
    # Joined in a bytearray, since arrays over bytes can't be written to.
    pixels = np.frombuffer(bytearray().join(images), np.uint8)
    return Split(pixels.reshape(-1, *image_shape), np.array(labels, np.int32), np.array(rows, np.int64))


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of a prepared copy except the manifest, by its path in `folder`."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _MANIFEST:
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _remove_leftovers(cache_dir: pathlib.Path) -> None:
    for folder in cache_dir.glob(f"{_PREPARING}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > _LEFTOVER_AFTER:
                shutil.rmtree(folder, ignore_errors=True)
