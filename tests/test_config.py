"""The option table, and configs that are made from it, checked, completed, compared and stored."""

import json
import math
import pathlib
import re
import runpy
import subprocess
import sys

import pytest
from etils import epath
from ml_collections import config_dict

from fer_jax.config import (
    check,
    check_keys,
    complete,
    differences,
    expand_path,
    flatten,
    from_stored,
    load,
    make_config,
    refuse_differences,
    result_differences,
    to_json,
)
from fer_jax.errors import UserError
from fer_jax.options.printed import describe_options, options_page
from fer_jax.options.table import OPTIONS

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "resnet50.py"
# The config.json of a run of version 0.1.
STORED = epath.Path(__file__).parent / "fixtures" / "config_0.1.json"

# Values of another type are refused, except that a float may be written as an int.
OF_OTHER_TYPES = {
    int: ("1", 1.5, True),
    float: ("0.1", True, math.nan),
    bool: ("True", 1, 0),
    str: (1, True, ("auto",)),
}

# Important bounds are repeated here; all other values that are tested are derived from the table.
WRONG_VALUES = [
    ("seed", -1),
    ("seed", 2**31),
    ("seed", 2**32),
    ("seed", 2**63),
    ("dataset.split_seed", 2**31),
    ("num_epochs", 0),
    ("augment.flip", 1.1),
    ("augment.rotation", 180.5),
    ("augment.zoom", 1.0),
    ("model.depth", 51),
    ("model.stem_kernel", 2),
    ("model.dtype", "float16"),
    ("optimizer.learning_rate", 0),
    ("optimizer.clip_norm", math.inf),
    ("loss.label_smoothing", 1),
    ("parallel.coordinator", "localhost"),
    ("checkpoint.storage_timeout", 0),
    ("log.profile_steps", 0),
]
RIGHT_VALUES = [
    ("seed", 2**31 - 1),
    ("dataset.split_seed", 2**31 - 1),
    ("augment.rotation", 180),
    ("model.depth", 152),
    ("optimizer.learning_rate", 1),
    ("train.skip_nonfinite", None),
]
CHANGE_RESULTS = {
    "seed",
    "batch_size",
    "augment.flip",
    "augment.alternating_flip",
    "augment.rotation",
    "augment.zoom",
    "augment.shift",
    "augment.crop",
    "augment.erasing",
    "mix.mixup",
    "mix.cutmix",
    "mix.probability",
    "mix.off_epochs",
    "preprocessing.standardize",
    "model.depth",
    "model.stages",
    "model.width",
    "model.stem_kernel",
    "model.stem_stride",
    "model.stem_pool",
    "model.zero_init",
    "model.batch_norm_momentum",
    "model.squeeze_excitation",
    "model.stochastic_depth",
    "model.dropout",
    "model.dtype",
    "model.sync_batch_norm",
    "model.conv",
    "model.init",
    "train.grad_accum_steps",
    "train.skip_nonfinite",
    "optimizer.name",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_epochs",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "loss.label_smoothing",
    "loss.class_weights",
    "ema.half_life",
    "evaluation.view",
    "early_stopping.metric",
    "early_stopping.min_delta",
    "parallel.reduce_dtype",
}


def baseline() -> config_dict.ConfigDict:
    return runpy.run_path(str(CONFIG))["get_config"]()


def section_of(values: dict, key: str) -> tuple[dict, str]:
    """Returns the section that `key` belongs to, created if it is missing, and the key's name in it."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    return values, name


def changed(key: str, value) -> config_dict.ConfigDict:
    """Returns the baseline with one value replaced, possibly by one of a wrong type, as in a user's config file."""
    values = baseline().to_dict()
    section, name = section_of(values, key)
    section[name] = value
    return config_dict.ConfigDict(values)


def other_value(key: str):
    """Returns a valid value of `key` that differs from the baseline's."""
    return next(value for value in OPTIONS[key].check.right if value != dict(flatten(baseline()))[key])


# ---- the table


@pytest.mark.parametrize("key", OPTIONS)
def test_every_default_and_every_example_of_a_right_value_is_accepted(key):
    option = OPTIONS[key]
    assert option.accepts(option.default)
    assert option.accepts(None) == option.optional
    assert len(set(option.check.right)) > (option.type is not str)  # at least two, or one string
    assert all(map(option.accepts, option.check.right))


@pytest.mark.parametrize("key", OPTIONS)
def test_a_wrong_value_is_an_error_that_names_its_key_and_shows_it(key):
    option = OPTIONS[key]
    unset = () if option.optional else (None,)
    for value in (*option.check.wrong, *OF_OTHER_TYPES[option.type], *unset):
        with pytest.raises(UserError) as error:
            check(changed(key, value))
        assert str(error.value) == (
            f"config.{key} is {value!r}; it must be {option.check.wanted} ({option.type.__name__})"
        )


@pytest.mark.parametrize("key", OPTIONS)
def test_a_note_is_one_sentence_or_a_few_on_one_line(key):
    note = OPTIONS[key].note
    assert note[0].isupper() or "." in note.split()[0]
    assert note.endswith(".")
    assert len(note) <= 110
    assert "|" not in note
    assert "\n" not in note


@pytest.mark.parametrize(("key", "value"), WRONG_VALUES)
def test_values_out_of_bounds_are_refused(key, value):
    with pytest.raises(UserError, match=rf"^config\.{key} is "):
        check(changed(key, value))


@pytest.mark.parametrize(("key", "value"), RIGHT_VALUES)
def test_values_at_the_bounds_pass(key, value):
    check(changed(key, value))


def test_an_error_says_what_would_be_right():
    with pytest.raises(UserError, match=r"one of 10, 18, 34, 50, 101, 152 \(int\)"):
        check(changed("model.depth", 51))
    with pytest.raises(UserError, match=r"one of constant, cosine, linear \(str\)"):
        check(changed("optimizer.schedule", "steps"))
    with pytest.raises(UserError, match=r"from 0 to 2147483647 \(int\)"):
        check(changed("seed", 2**32))


def test_the_page_of_options_is_the_table():
    written = (ROOT / "docs" / "options.md").read_text()
    assert written == options_page()
    printed = subprocess.run([sys.executable, "-m", "fer_jax.config"], cwd=ROOT, capture_output=True, text=True)
    assert printed.stdout == written, printed.stderr
    assert re.findall(r"^\| `([\w.]+)` \|", written, re.MULTILINE) == list(OPTIONS)
    assert "| `seed` | `0` | int, from 0 to 2147483647 | yes |" in written
    assert "| `log.every_steps` | `50` | int, at least 1 | no |" in written


def test_the_help_names_every_option_with_default_and_note():
    text = describe_options()
    for key, option in OPTIONS.items():
        default = "unset" if option.default is None else option.default
        assert f" {key} = {default}  (" in text
        assert option.note in text
    assert "\n* log.every_steps" in text
    assert "\n  model.depth" in text


def test_config_imports_no_jax():
    command = "import fer_jax.config, sys; assert not {'jax', 'tensorflow', 'flax'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True)


# ---- making and completing


def test_the_baseline_is_right():
    check(baseline())


def test_a_config_of_nothing_has_every_default():
    config = make_config()
    assert dict(flatten(config)) == {key: option.default for key, option in OPTIONS.items()}
    assert config.is_locked
    check(config)


def test_a_config_takes_sections_and_single_options():
    config = make_config(seed=3, model={"depth": 18, "stem_kernel": 3}, **{"augment.zoom": 0, "model.width": 8})
    assert differences(config, make_config()) == {
        "augment.zoom": (0.0, 0.1),
        "model.depth": (18, 50),
        "model.stem_kernel": (3, 7),
        "model.width": (8, 64),
        "seed": (3, 0),
    }


def test_a_float_that_is_written_as_an_int_can_be_any_float_later():
    config = make_config(augment={"zoom": 0})
    config.augment.zoom = 0.25
    assert config.augment.zoom == 0.25


@pytest.mark.parametrize("key", [key for key, option in OPTIONS.items() if option.optional])
def test_an_option_that_is_unset_can_be_set_later_and_to_its_type_only(key):
    config = make_config()
    value = OPTIONS[key].check.right[0]
    config.update_from_flattened_dict({key: value})
    assert dict(flatten(config))[key] == value
    with pytest.raises((TypeError, ValueError)):
        make_config().update_from_flattened_dict({key: ["a list"]})


def test_a_bare_config_with_some_keys_is_completed_and_keeps_its_references():
    config = config_dict.ConfigDict({"num_epochs": 20, "augment": {"flip": 1}})
    config.optimizer = config_dict.ConfigDict({"warmup_epochs": config.get_ref("num_epochs") * 0.25})
    complete(config)
    check(config)
    assert config.is_locked
    assert differences(config, make_config()).keys() == {"num_epochs", "augment.flip", "optimizer.warmup_epochs"}
    config.num_epochs = 40
    assert config.optimizer.warmup_epochs == 10.0


def test_a_config_file_can_build_on_another():
    config = baseline()
    config.model.depth = 18
    assert differences(complete(config), baseline()) == {"model.depth": (18, 50)}


@pytest.mark.parametrize("key", ["num_epoch", "model.with", "models.depth", "optimizer.adam.b1", "augment"])
def test_an_unknown_key_is_named(key):
    message = rf"^config\.{key} is not an option"
    values: dict = {}
    section, name = section_of(values, key)
    section[name] = 1
    with pytest.raises(UserError, match=message):
        make_config(**{key: 1})
    with pytest.raises(UserError, match=message):
        complete(config_dict.ConfigDict(values))
    with pytest.raises(UserError, match=message):
        check_keys([key])


def test_a_key_that_was_renamed_is_named_by_its_new_name():
    with pytest.raises(UserError, match=r"label_smoothing is not an option; is config\.loss\.label_smoothing meant\?"):
        make_config(optimizer={"label_smoothing": 0.1})


def test_a_section_in_the_place_of_a_value_is_an_error():
    with pytest.raises(UserError, match=r"^config\.augment\.flip\.probability is not an option"):
        make_config(augment={"flip": {"probability": 0.5}})


@pytest.mark.parametrize("key", OPTIONS)
def test_a_missing_key_is_named(key):
    values = baseline().to_dict()
    section, name = section_of(values, key)
    del section[name]
    with pytest.raises(UserError, match=rf"^config\.{key} is missing"):
        check(config_dict.ConfigDict(values))


def test_flatten_yields_every_value_once():
    nested = {"seed": 1, "model": {"depth": 50, "stem": {"pool": None}}}
    expected = [("model.depth", 50), ("model.stem.pool", None), ("seed", 1)]
    assert sorted(flatten(nested)) == sorted(flatten(config_dict.ConfigDict(nested))) == expected


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
        (
            {"train.grad_accum_steps": 3},
            "batch_size is 64; it must be a multiple of config.train.grad_accum_steps, 3",
        ),
        ({"augment.crop": 49}, "augment.crop is 49; it must be at most config.dataset.image_size, 48"),
        (
            {"evaluation.report_views": "whole,ten_crops"},
            "evaluation.report_views is whole,ten_crops; it shows crops, whose size config.augment.crop says",
        ),
        ({"evaluation.view": "centre_crop"}, "evaluation.view is centre_crop; it shows crops, whose size"),
        (
            {"augment.flip": 0.4, "augment.alternating_flip": True},
            "augment.flip is 0.4; it must be 0.5 with config.augment.alternating_flip",
        ),
        ({"mix.off_epochs": 26}, "mix.off_epochs is 26; it must be at most config.num_epochs, 25"),
        ({"dataset.path": "x.csv", "dataset.source": "embedded"}, "dataset.path is x.csv; it must be left out where"),
        (
            {"dataset.ferplus": "new.csv", "dataset.source": "embedded"},
            "dataset.ferplus is new.csv; it must be left out where config.dataset.source is 'embedded'",
        ),
        (
            {"dataset.ferplus": "new.csv", "dataset.classes": "folders"},
            "dataset.ferplus is new.csv; it must be left out where config.dataset.classes is 'folders'",
        ),
        (
            {"dataset.ferplus_target_weight": 0.5},
            "dataset.ferplus_target_weight is 0.5; it must be 0 where config.dataset.ferplus is unset",
        ),
        (
            {"dataset.ferplus_task": "soft"},
            "dataset.ferplus_task is soft; it must be none where config.dataset.ferplus is unset",
        ),
        (
            {
                "dataset.ferplus": "new.csv",
                "dataset.ferplus_task": "majority",
                "dataset.ferplus_target_weight": 0.5,
            },
            "dataset.ferplus_target_weight is 0.5; it must be 0 where config.dataset.ferplus_task is 'majority'",
        ),
        (
            {"dataset.ferplus": "new.csv", "dataset.ferplus_task": "majority", "mix.mixup": 0.2},
            "mix.mixup is 0.2; it must be 0 where config.dataset.ferplus_task is 'majority'",
        ),
        (
            {"dataset.ferplus": "new.csv", "dataset.ferplus_task": "majority", "mix.cutmix": 1.0},
            "mix.cutmix is 1.0; it must be 0 where config.dataset.ferplus_task is 'majority'",
        ),
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


# ---- comparing with the config of a run


def test_differences_name_each_key_with_both_values():
    ours, theirs = baseline(), baseline()
    assert differences(ours, theirs) == {}
    theirs.seed, theirs.model.depth, theirs.optimizer.clip_norm = 3, 18, 1.0
    different = differences(ours, theirs)
    assert different == {"model.depth": (50, 18), "optimizer.clip_norm": (None, 1.0), "seed": (0, 3)}


def test_differences_show_keys_that_only_one_side_has():
    assert differences({"a": 1}, {"b": {"c": 2}}) == {"a": (1, None), "b.c": (None, 2)}


def test_a_run_of_another_config_is_refused_with_each_key_and_both_values():
    ours, theirs = baseline(), baseline()
    theirs.model.depth, theirs.optimizer.clip_norm, theirs.log.every_steps = 18, 1.0, 3
    with pytest.raises(UserError) as error:
        refuse_differences(ours, theirs, workdir="runs/mine", advice="Think again")
    assert str(error.value) == (
        "runs/mine holds a run of another config: config.model.depth is 50 here and 18 there, "
        "config.optimizer.clip_norm is None here and 1.0 there. Think again"
    )


def test_another_experiment_is_told_to_take_a_workdir_of_its_own():
    ours = baseline()
    ours.seed = 1
    with pytest.raises(UserError, match=r"Choose another --workdir .* such as --workdir=runs/resnet50_seed_1, or the "):
        refuse_differences(ours, baseline(), workdir=epath.Path("runs/resnet50"))


@pytest.mark.parametrize("key", [key for key in OPTIONS if key != "num_epochs"])
def test_exactly_what_changes_results_can_not_be_changed_on_a_run(key):
    config = baseline()
    config.update_from_flattened_dict({key: other_value(key)})
    if key in CHANGE_RESULTS:
        with pytest.raises(UserError, match=rf"config: config\.{key} is "):
            refuse_differences(config, baseline(), workdir="runs/mine")
    else:
        refuse_differences(config, baseline(), workdir="runs/mine")
        refuse_differences(baseline(), config, workdir="runs/mine")
    assert (key in result_differences(config, baseline())) == (key in CHANGE_RESULTS)


def test_the_number_of_epochs_can_be_changed_at_a_constant_learning_rate_only():
    ours, theirs = baseline(), baseline()
    ours.num_epochs = 50
    refuse_differences(ours, theirs, workdir="runs/mine")
    ours.optimizer.schedule = theirs.optimizer.schedule = "cosine"
    with pytest.raises(UserError, match=r"config: config\.num_epochs is 50 here and 25 there\. "):
        refuse_differences(ours, theirs, workdir="runs/mine")


# ---- storing


def test_a_saved_config_comes_back_the_same(tmp_path):
    config = baseline()
    config.dataset.path, config.optimizer.learning_rate, config.dataset.split_seed = "faces/größe.csv", 3e-4, 5
    path = epath.Path(tmp_path / "config.json")
    path.write_text(to_json(config))
    loaded = load(path)
    assert loaded.to_dict() == config.to_dict()
    assert differences(config, loaded) == {}
    assert loaded.is_locked
    check(loaded)
    assert json.loads(path.read_text()) == config.to_dict()


def test_a_config_of_version_0_1_is_today_s_baseline():
    stored = json.loads(STORED.read_text())
    assert "label_smoothing" in stored["optimizer"]  # the file is in the old format
    loaded = load(STORED)
    assert dict(flatten(loaded)).keys() == OPTIONS.keys()
    check(loaded)
    assert differences(loaded, baseline()) == {"model.dtype": ("bfloat16", "auto")}
    refuse_differences(baseline(), loaded, workdir="runs/mine")


def test_values_of_version_0_1_keep_their_meaning():
    stored = json.loads(STORED.read_text())
    stored["optimizer"]["label_smoothing"], stored["train"]["accumulate_steps"], stored["seed"] = 0.1, 4, 3
    loaded = from_stored(stored, source="runs/old/config.json")
    assert differences(loaded, baseline()) == {
        "model.dtype": ("bfloat16", "auto"),
        "dataset.split_seed": (3, 0),  # version 0.1 drew the hold-out with the run's seed
        "loss.label_smoothing": (0.1, 0.0),
        "seed": (3, 0),
        "train.grad_accum_steps": (4, 1),
    }


@pytest.mark.parametrize("key", [key for key in OPTIONS if key != "dataset.split_seed"])
def test_a_run_that_is_older_than_an_option_has_its_default(key, tmp_path):
    values = make_config().to_dict()
    section, name = section_of(values, key)
    del section[name]
    path = epath.Path(tmp_path / "config.json")
    path.write_text(json.dumps(values))
    assert differences(load(path), make_config()) == {}


def test_a_run_of_a_newer_version_is_said_to_be_one(tmp_path):
    path = epath.Path(tmp_path / "config.json")
    path.write_text(json.dumps(baseline().to_dict() | {"mixup": {"alpha": 0.2}}))
    with pytest.raises(UserError) as error:
        load(path)
    assert str(error.value) == (f"{path} was written by a newer version of fer_jax: this one has no config.mixup.alpha")


def test_a_workdir_without_a_config_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is not there: is .* the workdir of a run\?"):
        load(tmp_path / "config.json")


@pytest.mark.parametrize("content", [b"", b'{"seed": 1', b"\xff\xfe", b"[1]", b"3", b"null"], ids=str)
def test_a_damaged_config_is_a_users_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json can't be read as a run's config"):
        load(path)


# ---- configs/


def test_configs_resnet50_is_the_baseline_method():
    config = baseline()
    assert (config.batch_size, config.num_epochs) == (64, 25)
    assert config.optimizer.to_dict() == {
        "name": "adam",
        "learning_rate": 0.001,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "weight_decay": 0.0,
        "clip_norm": None,
    }
    assert config.loss.label_smoothing == 0.0
    assert config.augment.flip == 0.5
    assert config.augment.rotation > 0
    assert config.augment.zoom > 0
    model = config.model
    assert (model.depth, model.width) == (50, 64)
    assert (model.stem_kernel, model.stem_stride, model.stem_pool) == (7, 2, True)
    assert config.early_stopping.patience < config.num_epochs
    assert config.dataset.source == "auto"
    assert config.is_locked


def test_paths_may_begin_with_the_user_and_hold_variables(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("SCRATCH", "/scratch/7")
    for path, expected in {
        "~/runs": "/home/ann/runs",
        "$SCRATCH/runs": "/scratch/7/runs",
        "${SCRATCH}/a b": "/scratch/7/a b",
        "runs/a~b": "runs/a~b",
        "gs://bucket/runs": "gs://bucket/runs",
    }.items():
        assert expand_path(path, "--workdir") == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("~nobody-of-that-name/runs", r"--workdir is ~nobody-of-that-name/runs, and there is no such user"),
        ("$NO_SUCH_VARIABLE/runs", r"the environment variable NO_SUCH_VARIABLE is not set"),
        ("a/${NO_SUCH_VARIABLE}", r"the environment variable NO_SUCH_VARIABLE is not set"),
    ],
)
def test_a_path_that_can_not_be_expanded_is_not_taken_as_it_is(path, expected):
    with pytest.raises(UserError, match=expected):
        expand_path(path, "--workdir")


def test_what_is_left_to_the_machine_is_no_difference_to_a_run():
    stored = changed("model.dtype", "float32")
    refuse_differences(changed("model.dtype", "auto"), stored, workdir="runs/mine")
    with pytest.raises(UserError, match=r"config.model.dtype is 'bfloat16' here and 'float32' there"):
        refuse_differences(changed("model.dtype", "bfloat16"), stored, workdir="runs/mine")


def test_the_cache_of_version_0_1_is_the_users_now():
    assert from_stored({"dataset": {"cache_dir": "data/prepared"}}, source="a run").dataset.cache_dir is None
    assert from_stored({"dataset": {"cache_dir": "/scratch"}}, source="a run").dataset.cache_dir == "/scratch"
