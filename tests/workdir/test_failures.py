"""Exceptions of the libraries are told apart: storage failures, refused access, failures that may pass, and others."""

import errno

import jax
import jax.numpy as jnp
import pytest
import tensorflow as tf
import tensorstore as ts

from fer_jax.errors import StorageError
from fer_jax.workdir import failures


def raised_by(call) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        call()
    return raised.value


def write_array(folder, values) -> None:
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder)}}
    store = ts.open(spec, create=True, dtype=ts.float32, shape=[4]).result()
    store.write(values).result()


def test_a_folder_that_is_a_file_fails_tensorstore_by_the_storage(tmp_path):
    (tmp_path / "array").write_text("a file where a folder should be")
    error = raised_by(lambda: write_array(tmp_path / "array", jnp.zeros(4)))
    assert isinstance(error, ValueError)
    assert failures.is_of_storage(error)


def test_an_array_of_the_wrong_shape_fails_tensorstore_by_a_bug(tmp_path):
    error = raised_by(lambda: write_array(tmp_path / "array", jnp.zeros(3)))
    assert isinstance(error, ValueError)
    assert not failures.is_of_storage(error)


def test_a_file_that_tensorflow_does_not_find_is_of_storage_and_a_wrong_argument_is_not(tmp_path):
    assert failures.is_of_storage(raised_by(lambda: tf.io.gfile.listdir(str(tmp_path / "missing"))))
    assert not failures.is_of_storage(raised_by(lambda: tf.reshape(tf.zeros(3), (2, 2))))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ConnectionResetError(),
        StorageError("a full disk"),
        ValueError("UNAVAILABLE: Error writing gs://faces/run: HTTP response code: 503"),
        ValueError("RESOURCE_EXHAUSTED: rate limit"),
        tf.errors.PermissionDeniedError(None, None, "HTTP response code 403"),
    ],
)
def test_errors_of_storage(error):
    assert failures.is_of_storage(error)
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = error
    assert failures.is_of_storage(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        TypeError("Object of type set is not JSON serializable"),
        ValueError("Dict key mismatch; expected keys: ['params']; dict: {}"),
        KeyError("No space left"),
        # A device that is out of memory and a lost process are not failures of the storage.
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes"),
        jax.errors.JaxRuntimeError("UNAVAILABLE: connection to the coordination service"),
    ],
)
def test_errors_of_something_else(error):
    assert not failures.is_of_storage(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (tf.errors.PermissionDeniedError(None, None, "HTTP response code 403"), True),
        (ValueError("PERMISSION_DENIED: Error opening local file"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (ValueError("DATA_LOSS: checksum"), False),
    ],
)
def test_refused_access_is_told_from_damage(error, expected):
    assert failures.is_of_permission(error) is expected


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.EMFILE, "Too many open files"), True),
        (MemoryError(), True),
        (ValueError("UNAVAILABLE: Error reading gs://faces/run: HTTP response code: 503"), True),
        (ValueError("Error opening file: Too many open files [os_error_code='EMFILE']"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (ValueError("DATA_LOSS: Error decoding manifest"), False),
        (ValueError("NOT_FOUND: Error opening zarr array"), False),
        (KeyError("record"), False),
    ],
)
def test_what_may_pass_says_nothing_of_a_file(error, may_pass):
    assert failures.may_pass(error) == may_pass
    wrapped = RuntimeError("reading failed")
    wrapped.__cause__ = error
    assert failures.may_pass(wrapped) == may_pass


@pytest.mark.parametrize("position", [0, 100, 290, 305, 600, 1200])
def test_the_reason_stays_in_a_long_message_wherever_it_stands(position):
    message = "a/long\npath " * 100
    line = failures.one_line(ValueError(f"{message[:position]}File too large{message[position:]}"))
    assert "File too large" in line
    assert "\n" not in line
    assert len(line) <= 600
    assert failures.one_line(ValueError("File too large")) == "File too large"
