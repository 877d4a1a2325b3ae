"""The training loop from end to end, with a tiny network."""

import itertools
import json
import os
import shutil
import sys
import time

import jax
import numpy as np
import pandas as pd
import pytest

from fer_jax import evaluate, parallel, train
from fer_jax.data import ferplus
from fer_jax.errors import UserError
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.native import build
from fer_jax.system import accelerators
from fer_jax.system.signals import StopRequest
from fer_jax.system.terminal import Terminal
from fer_jax.workdir import guards
from fer_jax.workdir.checkpoints import Checkpoints
from fer_jax.workdir.paths import Workdir
from tests.end_to_end.conftest import DisturbedAt, read_metrics
from tests.support import native, tiny_run
from tests.support.checkpoints import read_arrays

# The numbers of calls of `should_stop` in a run of two epochs. Each epoch has five calls before its steps, and one
# before each of its three evaluation batches, so the first call of the second epoch is the ninth.
QUESTIONS = {"before the first step": 1, "within an epoch": 4, "while evaluating": 7, "between two epochs": 9}


def assert_same_run(workdir, other):
    assert read_metrics(workdir) == read_metrics(other)
    ours, theirs = read_arrays(workdir), read_arrays(other)
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


def assert_same_but_for_rounding(workdir, other):
    for one, another in zip(read_metrics(workdir), read_metrics(other), strict=True):
        assert (one["step"], one["kind"]) == (another["step"], another["kind"])
        assert one["loss"] == pytest.approx(another["loss"], rel=1e-3)


def test_a_run_leaves_what_the_readme_says(finished):
    for name in ("curves.png", "confusion_matrix_validation.png", "confusion_matrix_test.png"):
        assert (finished / "report" / name).read_bytes().startswith(b"\x89PNG")
    assert list(finished.glob("events.out.tfevents.*"))
    events = read_metrics(finished)
    assert [(event["step"], event["kind"]) for event in events] == [
        (2, "train"),
        (4, "train"),
        (5, "train"),
        (5, "validation"),
        (6, "train"),
        (8, "train"),
        (10, "train"),
        (10, "validation"),
    ]
    history = pd.read_csv(finished / "report" / "history.csv")
    assert list(history["epoch"]) == [1, 2]
    accuracies = [event["accuracy"] for event in events if event["kind"] == "validation"]
    np.testing.assert_allclose(history["validation_accuracy"], accuracies, rtol=1e-12)
    evaluation = json.loads((finished / "report" / "evaluation_test.json").read_text())
    assert evaluation["num_examples"] == 17
    assert evaluation["selected_on"] == "validation accuracy"
    assert {event["dataset_fingerprint"] for event in events} == {evaluation["dataset_fingerprint"]}
    assert set(history["dataset_fingerprint"]) == {evaluation["dataset_fingerprint"]}


def test_the_same_command_on_a_complete_run_changes_nothing(finished, make_config, run, capsys):
    before = {path: path.read_bytes() for path in (finished / "metrics.jsonl", finished / "config.json")}
    assert run(make_config(), finished) == 0
    assert "is complete" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in before}


def test_a_complete_run_is_not_evaluated_again(finished, make_config, run, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path / "run")
    report = tmp_path / "run" / "report" / "evaluation_test.json"
    report.write_text(report.read_text() + "\n")  # a new report would differ
    written = report.read_bytes()
    assert run(make_config(), tmp_path / "run") == 0
    assert "Report, curves and confusion matrices" in capsys.readouterr().out
    assert report.read_bytes() == written
    report.unlink()
    assert run(make_config(), tmp_path / "run") == 0
    assert report.exists()


def test_an_import_that_fails_while_the_program_compiles_ends_the_run(make_config, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fer_jax.data.pipeline", None)
    with pytest.raises(ImportError, match=r"fer_jax\.data\.pipeline"):
        run(make_config(), tmp_path / "run")


def test_what_changes_no_result_may_be_changed_on_a_run(finished, make_config, run, tmp_path):
    assert run(make_config(num_epochs=1), tmp_path / "run") == 0
    changed = {"log.every_steps": 3, "checkpoint.every_steps": 2, "train.steps_per_call": 1}
    assert run(make_config(**changed), tmp_path / "run") == 0
    ours, theirs = read_arrays(tmp_path / "run"), read_arrays(finished)
    for path in theirs:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


def test_a_clock_that_goes_backwards_changes_nothing(finished, make_config, run, tmp_path, monkeypatch):
    seconds = itertools.count(2_000_000_000, -60)
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    assert run(make_config(), tmp_path / "run") == 0
    assert next(seconds) < 2_000_000_000 - 60  # the clock was read
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("moment", QUESTIONS)
def test_stop_and_resume_equals_not_stopping(moment, finished, make_config, run, tmp_path, capsys):
    assert run(make_config(), tmp_path / "run", stop_at=QUESTIONS[moment]) == 143
    assert "Stopped and saved" in capsys.readouterr().out
    assert run(make_config(), tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("steps_per_call", [2, 50])
def test_a_run_that_was_stopped_goes_on_at_other_steps_per_call(steps_per_call, finished, make_config, run, tmp_path):
    # The run stops after three of five steps, which is within a call of two steps and within one of the whole epoch.
    assert run(make_config(), tmp_path / "run", stop_at=QUESTIONS["within an epoch"]) == 143
    assert run(make_config(**{"train.steps_per_call": steps_per_call}), tmp_path / "run") == 0
    assert_same_but_for_rounding(tmp_path / "run", finished)


def test_with_fewer_checkpoints_a_crash_costs_epochs_and_changes_nothing(make_config, run, tmp_path):
    changes = {"num_epochs": 6, "optimizer.learning_rate": 1e-9}  # the best epoch is the first or one soon after it
    assert run(make_config(**changes), tmp_path / "every") == 0
    config = make_config(**changes | {"checkpoint.every_epochs": 4})

    def crash():
        raise RuntimeError("crashed")

    with pytest.raises(RuntimeError, match="crashed"):
        train.train(config, Workdir(tmp_path / "run"), DisturbedAt(5 * 8 + 3, crash))  # in the sixth epoch
    events = [event for event in read_metrics(tmp_path / "run") if event["kind"] == "validation"]
    accuracies = [event["accuracy"] for event in events]
    assert len(accuracies) == 5
    is_best = [accuracy > max([-1, *accuracies[:epoch]]) for epoch, accuracy in enumerate(accuracies)]
    saved = {event["step"] for event, best in zip(events, is_best, strict=True) if best} | {4 * 5}
    with Checkpoints(Workdir(tmp_path / "run"), read_only=True) as checkpoints:
        # The newest two and the best of the saved ones are kept. The fifth epoch was saved only if it was the best.
        assert set(checkpoints.steps) == {*sorted(saved)[-2:], events[is_best[::-1].index(True) * -1 - 1]["step"]}
    assert run(config, tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", tmp_path / "every")


def test_two_runs_of_a_config_are_the_same(finished, make_config, run, tmp_path):
    assert run(make_config(), tmp_path / "again") == 0
    assert_same_run(tmp_path / "again", finished)


@pytest.mark.parametrize(
    "overrides",
    [
        {"dataset.loader": "device", "parallel.mapper": "pmap", "train.steps_per_call": 2},
        {"train.steps_per_call": 2},
    ],
)
def test_the_loader_and_the_steps_of_a_call_change_no_result(overrides, finished, make_config, run, tmp_path):
    assert run(make_config(**overrides), tmp_path / "run") == 0
    assert_same_but_for_rounding(tmp_path / "run", finished)


def test_a_stop_between_calls_of_several_steps_resumes_exactly(make_config, run, tmp_path):
    config = make_config(**{"train.steps_per_call": 2, "checkpoint.every_steps": 3})
    assert run(config, tmp_path / "stopped", stop_at=3) == 143
    assert run(config, tmp_path / "stopped") == 0
    assert run(config, tmp_path / "whole") == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_steps_are_traced_on_demand(make_config, run, tmp_path):
    assert run(make_config(**{"num_epochs": 3, "log.profile_steps": 2}), tmp_path) == 0
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0


def test_a_run_of_another_config_is_refused_and_left_alone(finished, make_config, run):
    before = sorted(path for path in finished.rglob("*"))
    with pytest.raises(UserError, match=r"config.optimizer.learning_rate is 0.5 here and 0.001 there"):
        run(make_config(**{"optimizer.learning_rate": 0.5}), finished)
    assert before == sorted(path for path in finished.rglob("*"))


def test_a_run_on_other_data_is_refused(finished, make_config, run, tmp_path, csv_file):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    other = tmp_path / csv_file.name
    other.write_text(csv_file.read_text().replace(",150 ", ",151 ").replace("0,", "1,", 1))
    config = make_config(**{"dataset.path": str(other)})
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(UserError, match="was started on"):
        run(config, workdir)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(finished, make_config, run, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    for data in (tmp_path / "run" / "checkpoints" / "10" / "weights").rglob("d/*"):
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(UserError, match=r"step 10 .*; other checkpoints: 5"):
        evaluate.evaluate(
            None, Workdir(tmp_path / "run"), split="test", checkpoint="latest", strict=False, stop=StopRequest()
        )
    assert run(make_config(), tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "the checkpoint of step 10 " in out
    assert f"it is moved to {tmp_path / 'run' / 'damaged' / '10'}" in out
    assert "Resuming from the checkpoint of step 5" in out
    assert_same_run(tmp_path / "run", finished)


def test_where_every_checkpoint_is_damaged_nothing_begins_anew(finished, make_config, run, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for step in (5, 10):
        (tmp_path / "run" / "checkpoints" / str(step) / "record" / "metadata").unlink()
    events = read_metrics(tmp_path / "run")
    with pytest.raises(UserError, match="no other checkpoint"):
        run(make_config(), tmp_path / "run")
    assert read_metrics(tmp_path / "run") == events


def test_a_checkpoint_of_another_network_is_refused_with_what_differs(finished, make_config, run, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    config = make_config(**{"model.width": 4, "model.stem_pool": False})
    (tmp_path / "run" / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(UserError, match=r"step 10 .*model.stem_pool True there and False here.*model.width 2 there"):
        run(config, tmp_path / "run")


def test_two_runs_in_one_workdir_are_one_too_many(make_config, run, tmp_path):
    with (
        guards.hold_lock(Workdir(tmp_path), Terminal(is_primary=False)),
        pytest.raises(UserError, match=rf"in use by a run, process {os.getpid()} on "),
    ):
        run(make_config(), tmp_path)
    assert run(make_config(num_epochs=1), tmp_path) == 0


def test_steps_that_are_not_finite_are_skipped_on_request_until_too_many(make_config, run, tmp_path, capsys):
    config = make_config(**{"optimizer.learning_rate": 1e30, "num_epochs": 1, "train.skip_nonfinite": 2})
    assert run(config, tmp_path) == 3
    out = capsys.readouterr().out
    assert "Step 2 is skipped: its loss or gradient is not finite (1 steps so far)." in out
    assert "loss or gradient is not finite, in 3 steps in a row (step 4)" in out


def test_a_diverging_run_stops_with_3_and_keeps_the_last_good_checkpoint(make_config, run, tmp_path, capsys):
    config = make_config(
        **{"optimizer.learning_rate": 1e38, "optimizer.warmup_epochs": 1.0, "checkpoint.every_steps": 1}
    )
    # The warm-up's first step changes nothing; the second makes weights so large that the third's loss is not finite.
    assert run(config, tmp_path) == 3
    out = capsys.readouterr().out
    assert "diverged by step 3: the training loss is not finite (step 3)" in out
    assert "The checkpoint of step 2 is kept" in out
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert checkpoints.latest_step == 2
    assert all(np.isfinite(leaf).all() for leaf in read_arrays(tmp_path).values())


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_stop_with_weights_that_are_not_finite_is_a_divergence(make_config, run, tmp_path, capsys):
    # The run stops before the second step, whose loss would have shown what the first one did to the weights.
    assert run(make_config(**{"optimizer.learning_rate": 1e39}), tmp_path, stop_at=2) == 3
    assert "are not finite" in capsys.readouterr().out
    with Checkpoints(Workdir(tmp_path)) as checkpoints:
        assert checkpoints.latest_step is None


def test_early_stopping_ends_the_run_for_good(make_config, run, tmp_path, capsys):
    config = make_config(**{"num_epochs": 9, "early_stopping.min_delta": 1.0, "early_stopping.patience": 1})
    assert run(config, tmp_path) == 0
    epochs = [event["epoch"] for event in read_metrics(tmp_path) if event["kind"] == "validation"]
    assert epochs == [1, 2]  # no accuracy can exceed another by more than 1
    assert "Stopped early" in capsys.readouterr().out
    assert run(config, tmp_path) == 0
    assert "is complete" in capsys.readouterr().out


def test_an_implicit_transfer_in_the_hot_loop_is_an_error(make_config, run, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "shard_batch", _careless(parallel.shard_batch))
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run(make_config(), tmp_path)


def _careless(shard_batch):
    def careless(*args, **kwargs):
        jax.numpy.add(jax.numpy.ones(3), np.ones(3))  # implicitly transfers a numpy array to the device
        return shard_batch(*args, **kwargs)

    return careless


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": 12}, "must be a multiple of the 8 devices"),
        ({"train.grad_accum_steps": 2}, "must be a multiple of the 8 devices times config.train.grad_accum_steps, 2"),
        ({"batch_size": 48}, "more than the 40 training images"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(overrides, message, make_config, run, tmp_path):
    with pytest.raises(UserError, match=message):
        run(make_config(**overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_data_set_without_test_split_trains_and_says_so(make_config, run, tmp_path, csv_file, capsys):
    path = tmp_path / "fer2013.csv"
    path.write_text("".join(line for line in csv_file.open() if "PrivateTest" not in line))
    config = make_config(**{"dataset.path": str(path), "num_epochs": 1, "model.conv": "auto"})
    assert run(config, tmp_path / "run") == 0
    assert "has no test split" in capsys.readouterr().out
    assert not (tmp_path / "run" / "report" / "evaluation_test.json").exists()


def test_checkpoints_and_prepared_data_hold_no_pickles(finished, csv_file):
    folders = (finished, csv_file.parent / "prepared")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        # Pickles of protocols 2 to 5 begin with these bytes; older ones are text that ends with a full stop.
        assert not path.read_bytes().startswith(tuple(b"\x80" + bytes([version]) for version in range(2, 6))), path
        assert path.suffix not in (".pkl", ".pickle", ".npy", ".npz", ".pt"), path


def test_the_dtype_that_is_left_to_the_machine_is_stored_and_kept(make_config, run, tmp_path, capsys):
    def stored(workdir):
        return json.loads((workdir / "config.json").read_text())["model"]["dtype"]

    assert run(make_config(num_epochs=1, **{"model.dtype": "auto"}), tmp_path / "here") == 0
    assert stored(tmp_path / "here") == accelerators.resolve_dtype("auto")
    assert f"model.dtype=auto: {stored(tmp_path / 'here')}, this processor has" in capsys.readouterr().out
    # As if the run had been started on another machine.
    other = {"float32": "bfloat16", "bfloat16": "float32"}[stored(tmp_path / "here")]
    assert run(make_config(num_epochs=1, **{"model.dtype": other}), tmp_path / "there") == 0
    assert run(make_config(num_epochs=2, **{"model.dtype": "auto"}), tmp_path / "there") == 0
    assert stored(tmp_path / "there") == other
    assert f"model.dtype=auto: {other}, as the run in this workdir started." in capsys.readouterr().out


def test_a_run_by_native_convolutions_stops_and_resumes_exactly_and_goes_on_by_others(
    make_config, run, tmp_path, capsys
):
    native.load()
    config = make_config(**{"model.conv": "auto"})
    assert run(config, tmp_path / "whole") == 0
    assert "float32, native convolutions" in capsys.readouterr().out
    assert run(config, tmp_path / "stopped", stop_at=3) == 143
    assert run(config, tmp_path / "stopped") == 0
    assert read_metrics(tmp_path / "stopped") == read_metrics(tmp_path / "whole")
    whole, stopped = read_arrays(tmp_path / "whole"), read_arrays(tmp_path / "stopped")
    assert whole.keys() == stopped.keys()
    for key in whole:
        np.testing.assert_array_equal(stopped[key], whole[key], err_msg=key)
    # The same run goes on, as on a machine without a compiler.
    assert TrainedModel.load(tmp_path / "whole").metadata["computation"]["conv"] == "native"
    stored = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert stored["model"]["conv"] == "auto"
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        patched.setenv("CXX", "/nowhere/c++")
        build._load_once.cache_clear()
        assert run(make_config(num_epochs=3, **{"model.conv": "auto"}), tmp_path / "whole") == 0
        build._load_once.cache_clear()
    out = capsys.readouterr().out
    assert "Convolutions are matmul here and were native before: the last bits of what follows differ." in out
    assert "model.conv=auto: no native convolution (no C++ compiler" in out


# Everything that a recipe can switch on, for images of 48 pixels.
FULL = {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.02,
    "optimizer.schedule": "linear",
    "optimizer.warmup_epochs": 0.4,
    "optimizer.weight_decay": 5e-4,
    "augment.crop": 40,
    "augment.erasing": 0.5,
    "augment.alternating_flip": True,
    "mix.mixup": 0.2,
    "mix.cutmix": 0.5,
    "mix.off_epochs": 1,
    "preprocessing.standardize": True,
    "model.squeeze_excitation": True,
    "model.stochastic_depth": 0.2,
    "model.dropout": 0.2,
    "model.batch_norm_momentum": 0.8,
    "loss.label_smoothing": 0.1,
    "loss.class_weights": "balanced",
    "ema.half_life": 0.5,
    "evaluation.report_views": "whole,whole_mirrored,ten_crops",
}


@pytest.fixture(scope="module")
def full_config(make_config, tmp_path_factory):
    """Yields a config with everything that a recipe can switch on, including FER+."""
    votes = tiny_run.write_votes(tmp_path_factory.mktemp("votes") / "fer2013new.csv")
    ferplus_options = {"dataset.ferplus": str(votes), "dataset.ferplus_target_weight": 0.3}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ferplus, "ROWS", {"train": 40, "validation": 21, "test": 17})
        yield make_config(**FULL, **ferplus_options)


@pytest.fixture(scope="module")
def full(full_config, run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "full"
    assert run(full_config, workdir) == 0
    return workdir


def test_a_recipe_with_everything_goes_on_from_a_stop_as_if_there_had_been_none(full, full_config, run, tmp_path):
    assert run(full_config, tmp_path / "run", QUESTIONS["within an epoch"]) == 128 + 15
    assert run(full_config, tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", full)
    name = "report/evaluation_test.json"
    assert json.loads((tmp_path / "run" / name).read_text()) == json.loads((full / name).read_text())


def test_a_recipe_with_everything_is_the_same_by_the_other_mapper_and_loader(full, full_config, run, tmp_path):
    config = full_config.copy_and_resolve_references()
    other = {"dataset.loader": "device", "parallel.mapper": "pmap", "train.steps_per_call": 2}
    config.update_from_flattened_dict(other)
    assert run(config, tmp_path / "run") == 0
    assert_same_but_for_rounding(tmp_path / "run", full)


def test_the_averaged_weights_are_evaluated_beside_the_others_and_the_better_ones_are_kept(full):
    by_kind = {"validation": [], "validation_ema": []}
    for event in read_metrics(full):
        if event["kind"] in by_kind:
            by_kind[event["kind"]].append(event["accuracy"])
    assert [len(accuracies) for accuracies in by_kind.values()] == [2, 2]
    history = pd.read_csv(full / "report" / "history.csv")
    np.testing.assert_allclose(history["validation_ema_accuracy"], by_kind["validation_ema"], rtol=1e-12)
    trained = TrainedModel.load(full)
    validation = trained.metadata["validation"]
    assert validation["accuracy"] == max(*by_kind["validation"], *by_kind["validation_ema"])
    assert validation["view"] == "centre_crop"
    kind = "validation_ema" if validation["is_ema"] else "validation"
    assert validation["accuracy"] in by_kind[kind]
    report = json.loads((full / "report" / "evaluation_test.json").read_text())
    assert report["is_ema"] == validation["is_ema"]


def test_the_view_of_the_greatest_validation_accuracy_is_the_network_s_own(full):
    reports = {
        split: json.loads((full / "report" / f"evaluation_{split}.json").read_text())
        for split in ("validation", "test")
    }
    views = reports["validation"]["views"]
    assert list(views) == ["centre_crop", "whole", "whole_mirrored", "ten_crops"]
    best = max(views, key=lambda view: views[view]["accuracy"])
    assert json.loads((full / "selection.json").read_text())["view"] == best
    for report in reports.values():
        assert report["view"] == best
        assert report["accuracy"] == report["views"][best]["accuracy"]
    # The network has this view when it is loaded from the run and from a weights file.
    trained = TrainedModel.load(full)
    assert trained.preprocessing.view == best
    trained.save(full / "net.safetensors")
    assert TrainedModel.load(full / "net.safetensors").preprocessing == trained.preprocessing
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 1), np.uint8)
    np.testing.assert_array_equal(TrainedModel.load(full / "net.safetensors").logits(images), trained.logits(images))


def test_views_that_are_asked_for_later_are_reported_and_one_is_chosen(finished, make_config, run, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    config = make_config(**{"evaluation.report_views": "whole_mirrored"})
    assert run(config, tmp_path / "run") == 0
    for split in ("validation", "test"):
        report = json.loads((tmp_path / "run" / "report" / f"evaluation_{split}.json").read_text())
        assert list(report["views"]) == ["whole", "whole_mirrored"]
        assert report["view"] == json.loads((tmp_path / "run" / "selection.json").read_text())["view"]
    # As if the run had been stopped before its report, and evaluated by --mode=evaluate meanwhile.
    (tmp_path / "run" / "selection.json").unlink()
    assert run(config, tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "selection.json").read_text())["view"] == report["view"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.out.tfevents.1", "selection.json", "checkpoints/1"])
def test_a_folder_of_another_program_is_left_as_it_is(name, make_config, run, tmp_path):
    theirs = tmp_path / "theirs" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs\n")
    with pytest.raises(UserError, match=rf"holds {name}, but no config\.json, so it is not a run of fer_jax"):
        run(make_config(), tmp_path / "theirs")
    assert [path for path in (tmp_path / "theirs").rglob("*") if path.is_file()] == [theirs]
    assert theirs.read_text() == "theirs\n"


def test_selection_without_copies_of_copies_alone_is_refused(csv_file, make_config, tmp_path):
    rows = csv_file.read_text().splitlines()
    copies = [row.replace("Training", "PublicTest") for row in rows[1:15]]
    (tmp_path / "copies.csv").write_text("\n".join(rows[:41] + copies) + "\n")
    asked = {"dataset.path": str(tmp_path / "copies.csv"), "early_stopping.metric": "accuracy_without_copies"}
    with pytest.raises(UserError, match=r"each validation image of copies\.csv is in train too"):
        train.train(make_config(**asked), Workdir(tmp_path / "run"), StopRequest())
    assert not (tmp_path / "run").exists()


def test_selection_may_leave_out_the_copies(make_config, run, tmp_path):
    config = make_config(num_epochs=1, **{"early_stopping.metric": "accuracy_without_copies"})
    assert run(config, tmp_path / "run") == 0
    validation = TrainedModel.load(tmp_path / "run").metadata["validation"]
    assert validation["score"] == validation["accuracy_without_copies"]
