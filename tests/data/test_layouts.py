"""Files and folders as people have them: what is read from each, and what is reported."""

import gzip
import os
import pathlib
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageOps

from fer_jax.data import csv_layout, files, image_file, names
from fer_jax.data.dataset import CLASS_NAMES
from fer_jax.errors import UserError

FOLDERS = files.Form(class_names=None)


def save(path: pathlib.Path, image: np.ndarray | Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image.squeeze())).save(path, **options)


def write_folder(folder: pathlib.Path, images: np.ndarray, paths: list[str]) -> pathlib.Path:
    for image, path in zip(images, paths, strict=True):
        save(folder / path, image)
    return folder


def labels_of(dataset) -> dict[str, list[int]]:
    return {name: split.labels.tolist() for name, split in dataset.splits.items()}


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "valid", "test"),
        ("Training", "PublicTest", "PrivateTest"),
        ("train", "publicTest", "privateTest"),
        ("train_set", "val_set", "test_set"),
        ("training", "dev", "testing"),
    ],
)
def test_folders_of_splits_go_by_the_names_that_people_give_them(tmp_path, random_images, train, validation, test):
    paths = [f"{train}/happy/a.png", f"{validation}/sad/b.png", f"{test}/fear/c.png"]
    folder = write_folder(tmp_path / "faces", random_images(3), paths)
    assert labels_of(files.read(folder)) == {"train": [3], "validation": [4], "test": [2]}


@pytest.mark.parametrize(
    "names_",
    [
        ("train.csv", "val.csv", "test.csv"),
        ("fer2013_training.csv", "fer2013_publictest.csv", "fer2013_privatetest.csv.gz"),
    ],
)
@pytest.mark.parametrize("header", ["emotion,pixels", "emotion,pixels,Usage"])
@pytest.mark.parametrize("below", ["", "FER2013"])
def test_csv_files_side_by_side_are_the_splits(tmp_path, csv_bytes, random_images, names_, header, below):
    images = random_images(6)
    folder = tmp_path / "download" / below
    folder.mkdir(parents=True)
    for number, (name, usage) in enumerate(zip(names_, ("Training", "PublicTest", "PrivateTest"), strict=True)):
        rows = csv_bytes(images[2 * number :][:2], [number, 6], [usage] * 2, header=header)
        (folder / name).write_bytes(gzip.compress(rows) if name.endswith(".gz") else rows)
    dataset = files.read(tmp_path / "download")
    assert labels_of(dataset) == {"train": [0, 6], "validation": [1, 6], "test": [2, 6]}
    assert [split.rows.tolist() for split in dataset.splits.values()] == [[0, 1], [2, 3], [4, 5]]
    np.testing.assert_array_equal(np.concatenate([split.images for split in dataset.splits.values()]), images)


def test_a_csv_whose_rows_contradict_its_name_is_an_error(tmp_path, csv_bytes, random_images):
    for name, usage in (("train.csv", "Training"), ("test.csv", "Training")):
        (tmp_path / name).write_bytes(csv_bytes(random_images(1), [0], [usage]))
    with pytest.raises(UserError, match=r"test\.csv: rows with a Usage of the train split; the file is called test"):
        files.read(tmp_path)


def test_the_folder_of_the_competition_is_its_icml_face_data(tmp_path, csv_bytes, random_images):
    images = random_images(3)
    rows = csv_bytes(images, [0, 1, 2], ["Training", "PublicTest", "PrivateTest"], header="emotion, Usage, pixels")
    (tmp_path / "icml_face_data.csv").write_bytes(rows)
    (tmp_path / "train.csv").write_bytes(csv_bytes(images[:1], [0], [""], header="emotion,pixels"))
    (tmp_path / "test.csv").write_bytes(csv_bytes(images[1:], [0, 0], [""] * 2, header="pixels"))
    (tmp_path / "example_submission.csv").write_text("id,emotion\n1,0\n")
    dataset = files.read(tmp_path)
    assert labels_of(dataset) == {"train": [0], "validation": [1], "test": [2]}
    assert "icml_face_data.csv is read; passed over: example_submission.csv, test.csv, train.csv" in dataset.note
    # In older downloads train.csv is the only labelled file.
    (tmp_path / "icml_face_data.csv").unlink()
    assert labels_of(files.read_published(tmp_path)) == {"train": [0]}
    assert "train.csv is read; passed over: example_submission.csv, test.csv" in files.read_published(tmp_path).note


def test_several_csv_files_that_could_be_meant_are_named(tmp_path, csv_bytes, random_images):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_bytes(csv_bytes(random_images(1), [0], [""], header="emotion,pixels"))
    with pytest.raises(UserError, match=r"several csv files in it: a\.csv, b\.csv; give one"):
        files.read(tmp_path)
    (tmp_path / "b.csv").unlink()
    assert labels_of(files.read_published(tmp_path)) == {"unsplit": [0]}


@pytest.mark.parametrize("header", ["label,pixels,Usage", "Emotion,Pixel,split", "emotions, usage, pixels"])
@pytest.mark.parametrize("usages", [("Training", "PublicTest", "PrivateTest"), ("train", "val", "test")])
def test_columns_and_usages_go_by_common_names(tmp_path, random_images, header, usages):
    images = random_images(3)
    lines = [header]
    for label, (image, usage) in enumerate(zip(images, usages, strict=True)):
        values = {"emotion": str(label), "pixels": " ".join(map(str, image.ravel())), "usage": usage}
        lines.append(",".join(values[names.column_of(name)] for name in header.split(",")))
    (tmp_path / "faces.csv").write_text("\n".join(lines))
    dataset = files.read(tmp_path / "faces.csv")
    assert labels_of(dataset) == {"train": [0], "validation": [1], "test": [2]}
    np.testing.assert_array_equal(np.concatenate([split.images for split in dataset.splits.values()]), images)


@pytest.mark.parametrize("name", ["{label}", "{label} {name}", "{label}_{name}", "{other}-{name}"])
def test_numbered_class_folders(tmp_path, random_images, name):
    folders = [name.format(label=label, name=text, other=6 - label) for label, text in enumerate(CLASS_NAMES)]
    write_folder(tmp_path, random_images(7), [f"test/{folder}/a.png" for folder in folders])
    dataset = files.read_published(tmp_path)
    named = {f"test/{folder}/a.png": label for label, folder in enumerate(folders)}
    assert dataset.splits["test"].labels.tolist() == [named[path] for path in sorted(named)]
    said = "numbered classes are taken in the order of fer2013.csv: 0 angry, 1 disgust"
    assert (said in dataset.note) == (name == "{label}")


def test_class_folders_alone_tell_no_splits(tmp_path, random_images):
    images = random_images(20)
    folder = write_folder(tmp_path / "CK+48", images, [f"{CLASS_NAMES[i % 7]}/{i:02d}.png" for i in range(20)])
    for path in (folder, tmp_path):  # or one folder below
        published = files.read_published(path)
        assert list(published.splits) == ["unsplit"]
        assert list(files.all_as(published, "test").splits) == ["test"]
        assert list(files.read(path).splits) == ["train", "validation"]


def test_a_folder_that_is_of_no_split_is_said_with_its_images(tmp_path, random_images):
    paths = ["train/sad/a.png", "val/sad/b.png", "evaluation/sad/c.png", "evaluation/happy/d.webp"]
    dataset = files.read(write_folder(tmp_path, random_images(4), paths))
    assert labels_of(dataset) == {"train": [4], "validation": [4]}
    assert "evaluation: not the name of a split" in dataset.note
    assert "its 2 images are passed over" in dataset.note


def test_images_of_every_usual_suffix_are_read_and_others_are_counted(tmp_path, random_images):
    image = random_images(1)[0].squeeze()
    suffixes = ["png", "PNG", "bmp", "tif", "tiff", "gif", "webp", "pgm", "jpg", "jpeg", "jfif"]
    for number, suffix in enumerate(suffixes):
        options = {"lossless": True} if suffix == "webp" else {"format": "JPEG"} if suffix == "jfif" else {}
        save(tmp_path / f"test/sad/{number}.{suffix}", image, **options)
    for name in ("a.heic", "b.HEIC", "c.txt", "README", ".hidden.heic"):
        (tmp_path / "test/sad" / name).write_bytes(b"")
    dataset = files.read_published(tmp_path)
    assert len(dataset.splits["test"]) == len(suffixes)
    for name, found in zip(
        sorted(f"{i}.{s}" for i, s in enumerate(suffixes)), dataset.splits["test"].images, strict=True
    ):
        if not name.endswith(("jpg", "jpeg", "jfif")):
            np.testing.assert_array_equal(found.squeeze(), image, err_msg=name)
    assert "files that are not images are passed over: 2 .heic, 1 .txt, 1 no suffix" in dataset.note


# Other classes


def test_the_class_folders_are_the_classes_on_request(tmp_path, random_images):
    paths = [f"{split}/{name}/a.png" for split in ("train", "val") for name in ("neutral", "contempt", "Joy")]
    folder = write_folder(tmp_path, random_images(6), paths)
    dataset = files.read(folder, form=FOLDERS)
    assert dataset.class_names == ("Joy", "contempt", "neutral")
    assert labels_of(dataset) == {"train": [0, 1, 2], "validation": [0, 1, 2]}
    with pytest.raises(UserError, match=r"train/Joy: not a class of FER-2013.*dataset\.classes=folders"):
        files.read(folder)
    with pytest.raises(UserError, match="not a class of this network, which tells Joy, neutral apart"):
        files.read_published(folder, form=files.Form(("Joy", "neutral")))
    assert labels_of(files.read_published(folder, form=files.Form(("neutral", "contempt", "joy", "more")))) == {
        "train": [2, 1, 0],
        "validation": [2, 1, 0],
    }


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "test/c/1.png"], "test/c: a class without images in the tr"),
        (["train/a/1.png", "val/a/1.png"], "one class only, a"),
        (["train/a/1.png", "train/b/1.png", "val/a /1.png"], "in case or blanks only: a, a "),
        ([os.fsdecode(b"train/tr\xe4ne/1.png"), "train/b/1.png"], r"class folder 'tr\\udce4ne' isn't UTF-8; rename"),
        (["train/a/1.png", "train/b/1.png", "val/A/1.png"], "class folders that differ in case or blanks only: A, a"),
    ],
)
def test_classes_that_can_not_be_meant_are_an_error(tmp_path, random_images, paths, expected):
    with pytest.raises(UserError, match=expected):
        files.read(write_folder(tmp_path, random_images(len(paths)), paths), form=FOLDERS)


def test_blanks_around_the_name_of_a_class_do_not_matter(tmp_path, random_images):
    folder = write_folder(tmp_path, random_images(2), ["train/joy /1.png", "train/sad/1.png"])
    dataset = files.read_published(folder, form=FOLDERS)
    assert dataset.class_names == ("joy ", "sad")
    assert labels_of(dataset) == {"train": [0, 1]}


def test_a_csv_has_no_class_folders(tmp_path, csv_bytes, random_images):
    (tmp_path / "faces.csv").write_bytes(csv_bytes(random_images(1), [0], ["Training"]))
    with pytest.raises(UserError, match=r"faces\.csv: a csv has no class folders"):
        files.read(tmp_path / "faces.csv", form=FOLDERS)


# Other sizes and colours


def photograph(mode: str, size=(100, 100)) -> Image.Image:
    """Returns a picture that is dark on the left and light on the right."""
    ramp = np.tile(np.linspace(0, 255, size[0]), (size[1], 1))
    if mode == "I;16":
        return Image.fromarray((ramp * 257).astype(np.uint16))
    return Image.fromarray(ramp.astype(np.uint8)).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [*((mode, "png") for mode in ("L", "RGB", "RGBA", "P", "LA", "I;16")), ("CMYK", "tiff"), ("YCbCr", "jpg")],
)
def test_any_size_and_colour_is_brought_to_the_form_on_request(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    photograph(mode).save(path)
    image, was_resized = image_file.decode(path, size=32, resize=True)
    assert (image.shape, image.dtype, was_resized) == ((32, 32), np.uint8, True)
    assert np.abs(image.astype(int) - np.linspace(4, 251, 32)).max() < 6
    with pytest.raises(UserError, match=r"100 x 100 pixels; it should be a 32 x 32 grey.*dataset\.resize=True"):
        image_file.decode(path, size=32, resize=False)


def test_what_has_the_form_already_stays_as_it_is(tmp_path, random_images):
    grey = random_images(1)[0].squeeze()
    for mode in ("L", "RGB"):
        Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
        for resize in (False, True):
            image, was_resized = image_file.decode(tmp_path / "a.png", size=48, resize=resize)
            np.testing.assert_array_equal(image, grey)
            assert not was_resized


def test_the_largest_centred_square_is_taken_upright(tmp_path):
    wide = np.zeros((40, 100), np.uint8)
    wide[:, 30:70] = 200  # the centred square
    wide[:20, 30:70] = 100  # its upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(wide)).save(tmp_path / "a.png", exif=exif)
    image, _ = image_file.decode(tmp_path / "a.png", size=20, resize=True)
    # Rows 9 and 10 are left out: there the filter covers both halves.
    assert (image[:9] == 100).all()
    assert (image[11:] == 200).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_that_is_stored_turned_is_made_upright_on_request_and_otherwise_refused(
    orientation, tmp_path, random_images
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(random_images(1)[0].squeeze())
    stored.save(tmp_path / "a.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    image, _ = image_file.decode(tmp_path / "a.png", size=48, resize=True)
    np.testing.assert_array_equal(image, upright)
    if orientation == 1:
        np.testing.assert_array_equal(image_file.decode(tmp_path / "a.png", size=48, resize=False)[0], stored)
    else:
        with pytest.raises(UserError, match=r"a\.png: its EXIF orientation .*dataset\.resize=True"):
            image_file.decode(tmp_path / "a.png", size=48, resize=False)


def test_how_many_images_were_resized_is_said(tmp_path, random_images):
    folder = write_folder(tmp_path, random_images(2), ["train/sad/a.png", "val/sad/b.png"])
    save(folder / "train/sad/c.png", photograph("RGB"))
    form = files.Form(resize=True)
    dataset = files.read(folder, form=form)
    assert dataset.note == "1 of 3 images were brought to 48 x 48 pixels"
    with pytest.raises(UserError, match=r"c\.png: 100 x 100 pixels"):
        files.read(folder)
    assert files.identify(folder) != files.identify(folder, form)


def test_a_csv_of_other_images_is_resized_on_request(tmp_path):
    lines = ["emotion,pixels,Usage"]
    ramp = " ".join(map(str, np.tile(np.arange(64) * 4, (64, 1)).ravel()))
    lines += [f"{label},{ramp},{usage}" for label, usage in enumerate(("Training", "PublicTest"))]
    (tmp_path / "faces.csv").write_text("\n".join(lines))
    assert files.read(tmp_path / "faces.csv", form=files.Form(image_size=64)).image_shape == (64, 64, 1)
    with pytest.raises(UserError, match=r"images of 64 x 64 pixels; they should have 48 x 48; .*dataset\.resize=True"):
        files.read(tmp_path / "faces.csv")
    dataset = files.read(tmp_path / "faces.csv", form=files.Form(resize=True))
    assert dataset.image_shape == (48, 48, 1)
    assert np.abs(dataset.splits["train"].images[0, :, :, 0] - np.linspace(1, 251, 48)).max() < 4
    # A row whose number of pixels differs from the first row's is an error.
    (tmp_path / "faces.csv").write_text("\n".join(lines[:2]) + f"\n0,{'7 ' * 2304},PublicTest\n")
    with pytest.raises(UserError, match=r"row 3: 2304 pixels; an image has 4096 \(64 x 64\)"):
        files.read(tmp_path / "faces.csv", form=files.Form(image_size=64))


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("side", [256, 512])
def test_a_csv_of_the_largest_images_is_read_in_little_memory_whatever_their_values(tmp_path, side, quote):
    """Tests overexposed images, in which every pixel takes the most bytes of text."""
    rows = 6 * 1024**2 // side**2
    line = f"{quote}3{quote},{quote}{' '.join(['255'] * side**2)}{quote},{quote}Training{quote}\n"
    with open(tmp_path / "faces.csv", "w") as file:
        file.write("emotion,pixels,Usage\n")
        file.writelines([line] * rows)
    del line
    tracemalloc.start()
    try:
        images, labels, _ = csv_layout.read(tmp_path / "faces.csv")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert images.shape == (rows, side, side, 1)
    assert images.min() == 255
    assert labels.tolist() == [3] * rows
    # Room for the images twice and for a few rows as they are parsed; parsing all 24 MB at once takes over 200 MB.
    assert peak < 60e6
