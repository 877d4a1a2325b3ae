import json
import math
import pathlib
import re
import runpy

import pytest
from ml_collections import config_dict

from fer_jax.config import check, differences, flatten, load, refuse_differences, save
from fer_jax.errors import UserError

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "resnet50.py"

NOT_INTEGERS = (None, "1", 1.5, True)
NOT_NUMBERS = (None, "0.1", True, math.nan, math.inf)
NOT_BOOLEANS = (None, "True", 1, 0)
NOT_STRINGS = (None, 1, True)

WRONG_VALUES = {
    "seed": (-1, *NOT_INTEGERS),
    "num_epochs": (0, -1, *NOT_INTEGERS),
    "batch_size": (0, -64, *NOT_INTEGERS),
    "dataset.source": ("", "fer", "Embedded", *NOT_STRINGS),
    "dataset.path": ("", 1, True),
    "dataset.cache_dir": ("", *NOT_STRINGS),
    "dataset.loader": ("host", "", *NOT_STRINGS),
    "augment.flip": (-0.1, 1.1, *NOT_NUMBERS),
    "augment.rotation": (-1, 180.5, *NOT_NUMBERS),
    "augment.zoom": (-0.1, 1.0, *NOT_NUMBERS),
    "augment.shift": (-0.1, 1, *NOT_NUMBERS),
    "model.depth": (0, 20, 51, -50, "resnet50", *NOT_INTEGERS),
    "model.width": (0, -1, *NOT_INTEGERS),
    "model.stem_kernel": (0, 2, -3, None, "7", 7.0, True),
    "model.stem_stride": (0, -1, *NOT_INTEGERS),
    "model.stem_pool": NOT_BOOLEANS,
    "model.zero_init": NOT_BOOLEANS,
    "model.dtype": ("float16", "bf16", "", *NOT_STRINGS),
    "model.sync_batch_norm": NOT_BOOLEANS,
    "model.conv": ("winograd", "", *NOT_STRINGS),
    "model.remat": NOT_BOOLEANS,
    "train.accumulate_steps": (0, -1, *NOT_INTEGERS),
    "train.steps_per_call": (0, -1, *NOT_INTEGERS),
    "train.skip_nonfinite": (0, -5, "1", 1.5, True),
    "optimizer.learning_rate": (0, -0.001, *NOT_NUMBERS),
    "optimizer.schedule": ("step", "", *NOT_STRINGS),
    "optimizer.warmup_epochs": (-1, *NOT_NUMBERS),
    "optimizer.weight_decay": (-0.1, *NOT_NUMBERS),
    "optimizer.clip_norm": (0, -1.0, "1", True, math.nan, math.inf),
    "optimizer.label_smoothing": (-0.1, 1.0, *NOT_NUMBERS),
    "early_stopping.patience": (0, -1, *NOT_INTEGERS),
    "early_stopping.min_delta": (-0.1, *NOT_NUMBERS),
    "parallel.mapper": ("pjit", "", *NOT_STRINGS),
    "parallel.distributed": ("True", 1, 0),
    "parallel.coordinator": ("", "localhost", "localhost:", ":80", 1, True),
    "parallel.num_processes": (0, -1, "1", 1.5, True),
    "parallel.process_id": (-1, "1", 1.5, True),
    "parallel.reduce_dtype": ("float16", "", *NOT_STRINGS),
    "checkpoint.every_steps": (0, -5, "1", 1.5, True),
    "log.every_steps": (0, -5, *NOT_INTEGERS),
    "log.profile_steps": (0, -5, "1", 1.5, True),
}

RIGHT_VALUES = {
    "seed": (0, 12),
    "num_epochs": (1, 500),
    "batch_size": (1, 8192),
    "dataset.source": ("auto", "fer2013", "embedded"),
    "dataset.path": (None, "fer2013.csv"),
    "dataset.cache_dir": ("elsewhere",),
    "dataset.loader": ("tf.data", "device"),
    "augment.flip": (0, 0.5, 1),
    "augment.rotation": (0.0, 10, 180),
    "augment.zoom": (0, 0.99),
    "augment.shift": (0, 0.99),
    "model.depth": (18, 34, 50, 101, 152),
    "model.width": (1, 128),
    "model.stem_kernel": (1, 3, 7),
    "model.stem_stride": (1, 2),
    "model.stem_pool": (True, False),
    "model.zero_init": (True, False),
    "model.dtype": ("float32", "bfloat16"),
    "model.sync_batch_norm": (True, False),
    "model.conv": ("auto", "lax", "matmul"),
    "model.remat": (True, False),
    "train.accumulate_steps": (1, 8),
    "train.steps_per_call": (1, 100),
    "train.skip_nonfinite": (None, 3),
    "optimizer.learning_rate": (1e-9, 1),
    "optimizer.schedule": ("constant", "cosine"),
    "optimizer.warmup_epochs": (0, 2.5),
    "optimizer.weight_decay": (0, 0.05),
    "optimizer.clip_norm": (None, 1, 0.5),
    "optimizer.label_smoothing": (0, 0.1),
    "early_stopping.patience": (1, 10),
    "early_stopping.min_delta": (0, 0.001),
    "parallel.mapper": ("shard_map", "pmap"),
    "parallel.distributed": (None, True, False),
    "parallel.coordinator": (None,),
    "parallel.num_processes": (None,),
    "parallel.process_id": (None,),
    "parallel.reduce_dtype": ("float32", "bfloat16"),
    "checkpoint.every_steps": (None, 1),
    "log.every_steps": (1, 100),
    "log.profile_steps": (None, 5),
}


def baseline() -> config_dict.ConfigDict:
    return runpy.run_path(str(CONFIG))["get_config"]()


def section_of(values: dict, key: str) -> tuple[dict, str]:
    """Gives the (new, if need be) section that `key` belongs to, and the key's own name in it."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    return values, name


def changed(key: str, value) -> config_dict.ConfigDict:
    """Gives the baseline with one value replaced, whatever its type, as a config file of one's own may have it."""
    values = baseline().to_dict()
    section, name = section_of(values, key)
    section[name] = value
    return config_dict.ConfigDict(values)


def test_the_baseline_is_right():
    check(baseline())


def test_the_tables_here_name_every_key():
    assert dict(flatten(baseline())).keys() == WRONG_VALUES.keys() == RIGHT_VALUES.keys()


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG_VALUES.items() for value in values])
def test_a_wrong_value_is_an_error_that_names_its_key_and_shows_it(key, value):
    with pytest.raises(UserError) as error:
        check(changed(key, value))
    assert str(error.value).startswith(f"config.{key} is {value!r}; it must be ")


@pytest.mark.parametrize("key", RIGHT_VALUES)
def test_right_values_pass(key):
    for value in RIGHT_VALUES[key]:
        check(changed(key, value))


def test_an_error_says_what_would_be_right():
    with pytest.raises(UserError, match=r"one of 18, 34, 50, 101, 152 \(int\)"):
        check(changed("model.depth", 51))
    with pytest.raises(UserError, match=r"one of constant, cosine \(str\)"):
        check(changed("optimizer.schedule", "linear"))


@pytest.mark.parametrize("key", ["num_epoch", "model.with", "models.depth", "optimizer.adam.b1"])
def test_an_unknown_key_is_named(key):
    with pytest.raises(UserError, match=rf"^config\.{key} is not a key of this project"):
        check(changed(key, 1))


def test_a_section_in_the_place_of_a_value_is_an_error():
    with pytest.raises(UserError, match=r"^config\.augment\.flip is missing"):
        check(changed("augment.flip", {"probability": 0.5}))


@pytest.mark.parametrize("key", RIGHT_VALUES)
def test_a_missing_key_is_named(key):
    values = baseline().to_dict()
    section, name = section_of(values, key)
    del section[name]
    with pytest.raises(UserError, match=rf"^config\.{key} is missing"):
        check(config_dict.ConfigDict(values))


def test_a_missing_section_names_a_key_of_it():
    values = baseline().to_dict()
    del values["augment"]
    with pytest.raises(UserError, match=r"^config\.augment\.\w+ is missing"):
        check(config_dict.ConfigDict(values))


def test_flatten_gives_every_value_once():
    nested = {"seed": 1, "model": {"depth": 50, "stem": {"pool": None}}}
    expected = [("model.depth", 50), ("model.stem.pool", None), ("seed", 1)]
    assert sorted(flatten(nested)) == sorted(flatten(config_dict.ConfigDict(nested))) == expected


def test_differences_name_each_key_with_both_values():
    ours, theirs = baseline(), baseline()
    assert differences(ours, theirs) == {}
    theirs.seed, theirs.model.depth, theirs.optimizer.clip_norm = 3, 18, 1.0
    different = differences(ours, theirs)
    assert different == {"model.depth": (50, 18), "optimizer.clip_norm": (None, 1.0), "seed": (0, 3)}


def test_a_run_of_another_config_is_refused_with_each_key_and_both_values(tmp_path):
    ours, theirs = baseline(), baseline()
    theirs.model.depth, theirs.dataset.path = 18, "faces.csv"
    save(theirs, tmp_path / "config.json")
    with pytest.raises(UserError) as error:
        refuse_differences(ours, tmp_path, advice="Think again")
    assert str(error.value) == (
        f"{tmp_path} holds a run of another config: config.dataset.path is None here and 'faces.csv' there, "
        "config.model.depth is 50 here and 18 there. Think again"
    )
    with pytest.raises(UserError, match=r"config: config\.model\.depth is 50"):
        refuse_differences(ours, tmp_path, advice="", allowed="dataset.")
    ours.model.depth = 18
    refuse_differences(ours, tmp_path, advice="", allowed="dataset.")


def test_differences_show_keys_that_only_one_side_has():
    assert differences({"a": 1}, {"b": {"c": 2}}) == {"a": (1, None), "b.c": (None, 2)}


def test_a_saved_config_comes_back_the_same(tmp_path):
    config = baseline()
    config.dataset.path, config.optimizer.learning_rate = "faces/größe.csv", 3e-4
    path = tmp_path / "config.json"
    save(config, path)
    loaded = load(path)
    assert loaded.to_dict() == config.to_dict()
    assert differences(config, loaded) == {}
    assert loaded.is_locked
    check(loaded)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    assert json.loads(path.read_text()) == config.to_dict()


def test_saving_again_replaces(tmp_path):
    path = tmp_path / "config.json"
    save(baseline(), path)
    save(changed("seed", 7), path)
    assert load(path).seed == 7


def test_a_workdir_without_a_config_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is not there: is .* the workdir of a run\?"):
        load(tmp_path / "config.json")


@pytest.mark.parametrize("content", [b"", b'{"seed": 1', b"\xff\xfe", b"[1]", b"3", b"null"], ids=str)
def test_a_damaged_config_is_a_users_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json can't be read as a run's config"):
        load(path)


def test_configs_resnet50_is_the_baseline_method():
    config = baseline()
    assert (config.batch_size, config.num_epochs) == (64, 25)
    optimizer = config.optimizer.to_dict()
    assert optimizer == {
        "learning_rate": 0.001,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "weight_decay": 0.0,
        "clip_norm": None,
        "label_smoothing": 0.0,
    }
    assert config.augment.flip == 0.5
    assert config.augment.rotation > 0
    assert config.augment.zoom > 0
    model = config.model
    assert (model.depth, model.width) == (50, 64)
    assert (model.stem_kernel, model.stem_stride, model.stem_pool) == (7, 2, True)
    assert config.early_stopping.patience < config.num_epochs
    assert config.dataset.source == "auto"
    assert config.is_locked


def test_a_mistyped_key_can_not_be_set():
    with pytest.raises(AttributeError, match="learning_rat"):
        baseline().optimizer.learning_rat = 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"optimizer.warmup_epochs": 25.0},
            "optimizer.warmup_epochs is 25.0; it must be less than config.num_epochs, 25",
        ),
        ({"train.accumulate_steps": 3}, "batch_size is 64; it must be a multiple of config.train.accumulate_steps, 3"),
        ({"dataset.path": "x.csv", "dataset.source": "embedded"}, "dataset.path is x.csv; it must be left out where"),
        ({"parallel.coordinator": "localhost:1234"}, "parallel.coordinator is localhost:1234; it and"),
        ({"parallel.num_processes": 2, "parallel.process_id": 2}, "parallel.process_id is 2; it must be less than"),
    ],
)
def test_values_that_can_not_go_together_are_refused(values, message):
    config = baseline()
    config.update_from_flattened_dict(values)
    with pytest.raises(UserError, match=re.escape(f"config.{message}")):
        check(config)


def test_everything_that_is_wrong_is_said_at_once_and_a_misspelt_key_gets_its_like():
    values = baseline().to_dict()
    values["batchsize"] = values.pop("batch_size")
    values["model"]["depth"] = 20
    values["optimizer"]["warmup_epochs"] = 25.0
    with pytest.raises(UserError) as error:
        check(config_dict.ConfigDict(values))
    lines = str(error.value).splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        "config.batch_size",
        "config.batchsize",
        "config.model.depth",
        "config.optimizer.warmup_epochs",
    ]
    assert "is config.batch_size meant?" in lines[1]


def test_how_processes_are_started_is_no_difference_between_runs(tmp_path):
    save(baseline(), tmp_path / "config.json")
    config = baseline()
    config.update_from_flattened_dict(
        {"parallel.distributed": True, "parallel.coordinator": "a:1", "parallel.num_processes": 2}
    )
    refuse_differences(config, tmp_path, advice="")
