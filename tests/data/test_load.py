import pytest

from fer_jax.config import make_config
from fer_jax.data import embedded as embedded_lib
from fer_jax.data.load import load_dataset
from fer_jax.errors import UserError
from fer_jax.system.terminal import Terminal


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Changes to an empty working directory and returns it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def faces(csv_bytes, random_images):
    """Returns a csv of two rows."""
    return csv_bytes(random_images(2), [0, 6], ["Training", "PublicTest"])


def load(source, path, split_seed=0):
    values = {"source": source, "path": path, "cache_dir": "cache", "split_seed": split_seed}
    return load_dataset(make_config(dataset=values).dataset)


@pytest.fixture(scope="module")
def embedded():
    return embedded_lib.make(seed=0)


def test_auto_without_any_file_gives_the_embedded_set(workspace, embedded):
    dataset = load("auto", None, split_seed=3)
    assert (dataset.name, dataset.fingerprint) == (embedded.name, embedded.fingerprint)
    assert list(workspace.iterdir()) == []


def test_embedded_wins_over_files_that_happen_to_be_there(workspace, faces, embedded):
    (workspace / "data").mkdir()
    (workspace / "data/fer2013.csv").write_bytes(faces)
    assert load("embedded", None, split_seed=0).name == embedded.name


@pytest.mark.parametrize("name", ["auto", "fer2013"])
def test_a_path_is_taken_before_the_usual_places(workspace, faces, name):
    (workspace / "data").mkdir()
    (workspace / "data/fer2013.csv").write_text("not read")
    (workspace / "mine.csv").write_bytes(faces)
    dataset = load(name, "mine.csv", split_seed=0)
    assert dataset.name == "mine.csv"
    assert dataset.splits["train"].labels.tolist() == [0]
    assert (workspace / "cache").is_dir()


@pytest.mark.parametrize("name", ["auto", "fer2013"])
def test_without_a_path_the_usual_places_are_looked_at_in_order(workspace, faces, name):
    (workspace / "data").mkdir()
    (workspace / "data/icml_face_data.csv").write_bytes(faces)
    assert load(name, None, split_seed=0).name == "icml_face_data.csv"
    (workspace / "data/fer2013.csv").write_bytes(faces)
    assert load(name, None, split_seed=0).name == "fer2013.csv"


@pytest.mark.parametrize("name", ["auto", "fer2013"])
def test_a_path_that_is_not_there_is_an_error_whatever_else_is(workspace, faces, name):
    (workspace / "data").mkdir()
    (workspace / "data/fer2013.csv").write_bytes(faces)
    with pytest.raises(UserError, match=r"missing\.csv: there is no such file or folder"):
        load(name, "missing.csv", split_seed=0)


def test_fer2013_without_files_says_where_it_looked(workspace):
    with pytest.raises(UserError) as error:
        load("fer2013", None, split_seed=0)
    assert "neither data/fer2013.csv nor data/icml_face_data.csv" in str(error.value)
    assert str(workspace) in str(error.value)


def test_the_split_seed_reaches_the_validation_split_that_is_held_out(workspace, csv_bytes, random_images):
    (workspace / "train.csv").write_bytes(csv_bytes(random_images(60), [3] * 60, [""] * 60, header="emotion,pixels"))
    rows = [load("auto", "train.csv", split_seed=seed).splits["validation"].rows.tolist() for seed in (0, 1, 0)]
    assert rows[0] == rows[2] != rows[1]


def test_without_a_home_for_a_cache_the_files_are_read_and_it_is_said(workspace, faces, monkeypatch, capsys):
    (workspace / "mine.csv").write_bytes(faces)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "~")  # for pathlib this is no home folder
    dataset = load_dataset(make_config(dataset={"path": "mine.csv"}).dataset, Terminal(is_primary=True))
    assert dataset.splits["train"].labels.tolist() == [0]
    assert "not kept, so the files are read anew each time: this user has no home folder; " in capsys.readouterr().err
