"""Feeds the readers of FER-2013 broken files: python -m scripts.reliability fuzz [--csv N] [--folders N] [--seed N]

Each input is a small valid csv (plain or gzipped) or image folder with some mutations: bytes flipped, cut out, doubled,
swapped, replaced by critical ones; files and folders renamed, deleted or overwritten. A reader must either report an
error (UserError) or return exactly what an independent, slow reader returns for the same bytes, within SECONDS and
MEMORY. Prints the number of inputs of each outcome; fails at the first input that violates this, and keeps it.
"""

import argparse
import collections
import csv
import gzip
import io
import json
import pathlib
import random
import re
import resource
import shutil
import signal
import tempfile

import numpy as np
from PIL import Image

from fer_jax.data import files
from fer_jax.data.dataset import CLASS_NAMES, SPLITS
from fer_jax.errors import UserError

SECONDS, MEMORY = 20, 4 * 2**30
USAGES = {"training": "train", "train": "train", "publictest": "validation", "privatetest": "test", "test": "test"}
COLUMNS = {"emotions": "emotion", "pixel": "pixels", "set": "usage"}
TELLING = [b"", b",", b'"', b"\n", b"\r", b"\r\n", b"\x00", b" ", b"-1", b"7", b"256", b"1e3", b"0x10", b"\xef\xbb\xbf"]
TELLING += [b"NaN", b"Training", b"publictest", b"\xff\xfe", b"9" * 400, "٣".encode(), b"emotion", b"+5", b"3.0", b"\t"]


def sound_csv(generator: random.Random) -> bytes:
    columns = generator.choice([("emotion", "pixels", "Usage"), ("emotion", " Usage", " pixels")])
    lines = [",".join(columns)]
    for usage in ("Training", "PublicTest", "Training", "PrivateTest"):
        pixels = " ".join(str(generator.randrange(256)) for _ in range(48 * 48))
        values = {"emotion": str(generator.randrange(7)), "pixels": pixels, "Usage": usage}
        lines.append(",".join(values[column.strip()] for column in columns))
    return ("\n".join(lines) + "\n").encode()


def mutate(content: bytes, generator: random.Random) -> bytes:
    """Applies 1 to 4 mutations, half of them near a line break or a comma, where the structure of a csv is."""
    for _ in range(generator.randint(1, 4)):
        places = [0, len(content)] + [i for i, byte in enumerate(content) if byte in b"\n,"]
        place = generator.choice(places) + generator.randint(-6, 6) if generator.random() < 0.5 else None
        start = min(max(generator.randrange(len(content) + 1) if place is None else place, 0), len(content))
        length = generator.choice([0, 1, 1, 2, 5, 100, 10_000])
        part, rest = content[start : start + length], content[start + length :]
        change = generator.randrange(5)
        if change == 0:
            part = bytes(byte ^ (1 << generator.randrange(8)) for byte in part)
        elif change == 1:
            part = b""
        elif change == 2:
            part = part + part
        elif change == 3:
            part = generator.choice(TELLING)
        else:
            part, rest = rest[:length], part + rest[length:]
        content = content[:start] + part + rest
    return content


def read_slowly(content: bytes) -> dict[str, list[tuple[int, list[int]]]]:
    """Returns {split: [(label, pixels)]} of a csv; raises ValueError, KeyError or csv.Error if it is invalid."""
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True, skipinitialspace=True)
    columns = [name.strip().lower() for name in next(rows)]
    columns = [COLUMNS.get(name, name) for name in columns]
    examples = {}
    for row in rows:
        if not any(field.strip() for field in row):
            continue
        values = dict(zip(columns, row, strict=True))
        usage = re.sub(r"[\s_.-]", "", values.get("usage", "").lower())
        split = USAGES[usage] if "usage" in columns else "unsplit"
        label, pixels = int(values["emotion"]), [int(pixel) for pixel in values["pixels"].split()]
        if not 0 <= label <= 6 or len(pixels) != 48 * 48 or not 0 <= min(pixels) <= max(pixels) <= 255:
            raise ValueError("out of range")
        examples.setdefault(split, []).append((label, pixels))
    return examples


def fail(message: str):
    raise AssertionError(message)


class TooLong(BaseException):
    """Raised if an input takes more than SECONDS. Not an Exception, which a reader may turn into a UserError."""


def stop(*_) -> None:
    raise TooLong(f"more than {SECONDS} s")


def check_csv(path: pathlib.Path, generator: random.Random) -> str:
    content = mutate(sound_csv(generator), generator)
    compressed = generator.random() < 0.2
    if compressed:
        content = gzip.compress(content, 1)
        if generator.random() < 0.7:
            content = mutate(content, generator)
    path.write_bytes(content)
    try:
        dataset = files.read_published(path)
    except UserError as error:
        return "csv refused" if str(path) in str(error) else fail(f"an error that doesn't name the file: {error}")
    plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    found = {
        name: [(int(label), image.ravel().tolist()) for label, image in zip(split.labels, split.images, strict=True)]
        for name, split in dataset.splits.items()
    }
    assert found == read_slowly(plain), "read otherwise than by csv.reader"
    return "csv accepted"


def write_folder(folder: pathlib.Path, generator: random.Random) -> None:
    for split in ("train", "test"):
        for label in generator.sample(range(7), 2):
            for number in range(2):
                usage = "Training" if split == "train" else generator.choice(["PublicTest", "PrivateTest"])
                path = folder / split / CLASS_NAMES[label] / f"{usage}_{number}.{generator.choice(['png', 'jpg'])}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.frombuffer(generator.randbytes(48 * 48), np.uint8).reshape(48, 48)).save(path)


def mutate_folder(folder: pathlib.Path, generator: random.Random) -> None:
    for _ in range(generator.randint(1, 3)):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            return
        path = generator.choice(files)
        change = generator.randrange(7)
        if change <= 2:
            path.write_bytes(mutate(path.read_bytes(), generator))
        elif change == 3:
            size, mode = (
                generator.choice([(48, 48), (47, 48), (1, 1), (4000, 4000)]),
                generator.choice(["L", "RGB", "1", "I;16"]),
            )
            Image.new(mode, size).save(path, format="PNG")
        elif change == 4:
            names = ["angry", "Anger", "sadness", "joy", "..", "neutral", "contempt", "FEAR"]
            other = path.parent.with_name(generator.choice(names))
            if not other.exists():
                path.parent.rename(other)
        elif change == 5:
            names = [
                "Training_9.png",
                "PublicTest_9.jpg",
                ".hidden.png",
                "x.gif",
                "notes.txt",
                "a" * 200 + ".png",
                "\n.png",
            ]
            path.rename(path.with_name(generator.choice(names)))
        else:
            path.unlink()


def check_folder(folder: pathlib.Path, generator: random.Random) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    write_folder(folder, generator)
    mutate_folder(folder, generator)
    try:
        dataset = files.read_published(folder)
    except UserError as error:
        return "folder refused" if str(folder) in str(error) else fail(f"an error that doesn't name it: {error}")
    for name, split in dataset.splits.items():
        assert name in (*SPLITS, "unsplit"), name
        assert len(split) > 0, name
        assert split.images.shape == (len(split), 48, 48, 1), split.images.shape
    # Each label must be that of its folder: files are counted by class folder, whatever their names.
    count = collections.Counter()
    names = {"anger": "angry", "sadness": "sad", "fear": "fear", "joy": "happy"}
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix.lower() in (".png", ".jpg", ".gif") and not path.name.startswith("."):
            count[names.get(path.parent.name.lower(), path.parent.name.lower())] += 1
    labels = np.concatenate([split.labels for split in dataset.splits.values()])
    assert count == collections.Counter(CLASS_NAMES[label] for label in labels), "labels that no folder says"
    return "folder accepted"


def fuzz(num_csv: int, num_folders: int, seed: int, folder: pathlib.Path) -> dict[str, int]:
    """Returns the numbers of refused and accepted inputs; at a failure raises AssertionError with the input's path."""
    results = collections.Counter()
    signal.signal(signal.SIGALRM, stop)
    for check, path, number in ((check_csv, folder / "f.csv", num_csv), (check_folder, folder / "faces", num_folders)):
        for i in range(number):
            generator = random.Random(f"{seed} {check.__name__} {i}")
            signal.alarm(SECONDS)
            try:
                results[check(path, generator)] += 1
            except (Exception, TooLong) as error:
                kept = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-")) / path.name
                path.rename(kept)
                raise AssertionError(f"input {i} of {check.__name__}, kept as {kept}: {error!r}") from error
            finally:
                signal.alarm(0)
    return dict(results)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=int, default=16_000)
    parser.add_argument("--folders", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(fuzz(arguments.csv, arguments.folders, arguments.seed, pathlib.Path(folder))))
