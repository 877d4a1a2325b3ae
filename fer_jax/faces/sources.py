"""Expands arguments of the command line to pictures, folders of pictures, videos, a camera or standard input."""

import glob
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fer_jax.data import image_file
from fer_jax.errors import UserError
from fer_jax.faces import video

# Only these files are read from a folder, which may contain others; a file named by the user is read in any case.
PICTURE_SUFFIXES = (*image_file.SUFFIXES, ".avif", ".heic", ".heif")
# How the names end that `Saver` gives. Its folder may be in the one that is read.
SAVED_PICTURE, SAVED_VIDEO = "_fer.jpg", "_fer.webm"


class Source(NamedTuple):
    """An input. name: shown to the user. value: the argument for `Classifier` or `video.frames`."""

    name: str
    value: Any


def expand(words: Sequence[str]) -> Iterator[Source]:
    """Yields the pictures, videos and cameras that the words denote, in the order of the words.

    A word is a picture or video; a pipe with a picture, such as the shell's <(command); a folder, for all pictures and
    videos in it and its subfolders, sorted by name, except for hidden ones and those that `Saver` wrote; a pattern such
    as 'a*.jpg'; '-' for standard input; or the number of a camera.

    Raises UserError if nothing has that name or a file of that name is a device.
    """
    for word in words:
        if word == "-":
            yield Source("-", sys.stdin.buffer.read())
        elif os.path.isdir(word):
            found = False
            for path in _files_of(word):
                found = True
                yield Source(path, path)
            if not found:
                raise UserError(f"{word} has no pictures or videos in it: {' '.join(PICTURE_SUFFIXES)} ...")
        elif os.path.isfile(word) or "://" in word:
            yield Source(word, word)
        elif os.path.exists(word):
            yield Source(word, _content_of_pipe(word))
        # Tested after the files: a file whose name is a number takes precedence over the camera.
        elif word.isdigit():
            yield Source(f"camera {word}", int(word))
        elif matches := sorted(glob.glob(word, recursive=True)):
            yield from expand(matches)
        else:
            raise UserError(f"{word} is not there")


def refuse_output(path: str, option: str, sources: Sequence[Source]) -> None:
    """Raises UserError if the answers would overwrite a picture or video.

    path: the file for the answers, given by `option`. sources: the inputs.
    """
    # Users who take --json for a switch type --json photo.jpg, perhaps without naming the picture again.
    if path.lower().endswith(PICTURE_SUFFIXES + video.SUFFIXES):
        raise UserError(f"{option} is {path}, which is named as a picture or video; answers go to another file")
    files = [source.value for source in sources if isinstance(source.value, str) and os.path.exists(source.value)]
    if os.path.exists(path) and any(os.path.samefile(path, file) for file in files):
        raise UserError(f"{option} is {path}, which is to be looked at itself; answers go to another file")


def _content_of_pipe(word: str) -> bytes:
    # Read at once, because a pipe can be opened only once.
    if not stat.S_ISFIFO(os.stat(word).st_mode):
        raise UserError(f"{word} is a device; 0 is the first camera, and - reads a picture from standard input")
    with open(word, "rb") as file:
        return file.read()


def _files_of(folder: str) -> Iterator[str]:
    """Yields the pictures and videos, and the folders that can't be listed, which are reported when they are read."""
    unlisted: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=lambda error: unlisted.append(error.filename)):
        # Hidden ones are a Mac's ._*.jpg, thumbnails and deleted pictures. os.walk visits the folders in this order.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            is_hidden_or_ours = name.startswith(".") or name.endswith((SAVED_PICTURE, SAVED_VIDEO))
            if name.lower().endswith(PICTURE_SUFFIXES + video.SUFFIXES) and not is_hidden_or_ours:
                yield os.path.join(parent, name)
    yield from unlisted
