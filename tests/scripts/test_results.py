"""The table of runs, by value, from folders as runs leave them."""

import json
import pathlib
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fer_jax import config as config_lib
from fer_jax.system import command_line
from scripts import results

ROOT = pathlib.Path(__file__).parents[2]
FINGERPRINT = "7fcc111d81f1638f"
VOTES = {"dataset.ferplus": "/somewhere/fer2013new.csv"}


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes the config and the reports of a finished run and returns its folder."""

    def write(name, validation, test, *, extra=None, epochs=None, **options):
        folder = tmp_path / name
        (folder / "report").mkdir(parents=True)
        sections = {"model.depth": 18, "dataset.path": "/somewhere/fer2013.csv"} | options
        config = config_lib.make_config(**sections)
        (folder / "config.json").write_text(config_lib.to_json(config))
        # The accuracy rises, so that no run stops early.
        events = [
            {"step": epoch, "epoch": epoch, "kind": "validation", "loss": 1.0, "accuracy": epoch / 100}
            for epoch in range(1, 1 + (epochs or config.num_epochs))
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        for split, accuracy in (("validation", validation), ("test", test)):
            evaluation = {
                "split": split,
                "accuracy": accuracy,
                "num_examples": 3589,
                "checkpoint_step": 100,
                "selected_on": "validation accuracy",
                "dataset": "fer2013.csv",
                "dataset_fingerprint": FINGERPRINT,
                "per_class": {"angry": {"support": 467}, "happy": {"support": 3122}},
                "views": {"mirrored": {"accuracy": 0.9}},
            }
            (folder / "report" / f"evaluation_{split}.json").write_text(json.dumps(evaluation | (extra or {})))
        return str(folder)

    return write


def change(folder: str, split: str, **values) -> None:
    path = pathlib.Path(folder) / "report" / f"evaluation_{split}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rows_of(page: str) -> list[list[str]]:
    """Returns the cells of all tables' rows, without the headings."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| options")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_a_group_has_its_mean_deviation_and_interval_and_each_seed_and_others_their_effect(write, capsys):
    # The seeds are not in order; options that don't change results may differ.
    runs = [write(f"a{seed}", v, t, seed=seed) for seed, v, t in ((2, 0.64, 0.65), (0, 0.60, 0.61), (1, 0.62, 0.63))]
    runs += [
        write("b0", 0.50, 0.70, seed=0, **{"model.width": 32, "log.every_steps": 3}),
        write("b1", 0.51, 0.72, seed=1, **{"model.width": 32, "train.steps_per_call": 8}),
        write("c0", 0.70, 0.55, seed=7, **{"optimizer.clip_norm": 1.0, "model.stem_pool": False}),
    ]
    assert results.main(runs) == 0
    page = capsys.readouterr().out
    assert "Accuracy in percent on validation (PublicTest) of fer2013.csv (`7fcc111d81f1638f`), 3,589 images:" in page
    assert "Accuracy in percent on test (PrivateTest) of fer2013.csv" in page
    # t(0.975, 2 degrees) = 4.302653; 4.302653 * 2 / sqrt(3) = 4.968.
    baseline, narrow, other = rows_of(page)[:3]
    assert baseline == ["baseline", "3", "62.00", "2.00", "57.03 to 66.97", "", "", "0: 60.00, 1: 62.00, 2: 64.00"]
    welch = stats.ttest_ind([50, 51], [60, 62, 64], equal_var=False).confidence_interval(0.95)
    assert narrow[0] == "`model.width=32`"
    assert narrow[5:7] == ["-11.50", f"{welch.low:+.2f} to {welch.high:+.2f}"]
    assert other[0] == "`model.stem_pool=False`, `optimizer.clip_norm=1.0`"
    assert other[1:] == ["1", "70.00", "", "one seed", "+8.00", "one seed", "7: 70.00"]
    assert [row[5] for row in rows_of(page)[3:]] == ["", "+8.00", "-8.00"]


def test_another_baseline_comes_first_and_a_run_that_is_given_twice_is_one(write, capsys):
    runs = [write("a", 0.6, 0.6), write("b", 0.5, 0.7, **{"model.width": 32})]
    assert results.main([*runs, "--split=test", f"--baseline={runs[1]}/"]) == 0
    first, second = rows_of(capsys.readouterr().out)
    assert (first[0], first[2]) == ("baseline", "70.00")
    assert (second[0], second[2], second[5]) == ("`model.width=64`", "60.00", "-10.00")


def test_runs_that_end_elsewhere_are_not_of_one_row(write, capsys):
    runs = [write("a", 0.6, 0.6), write("b", 0.7, 0.7, num_epochs=50, seed=1)]
    runs += [write("c", 0.7, 0.7, seed=2, **{"early_stopping.patience": 3})]
    assert results.main([*runs, "--split=test"]) == 0
    assert [row[0] for row in rows_of(capsys.readouterr().out)] == [
        "baseline",
        "`num_epochs=50`",
        "`early_stopping.patience=3`",
    ]


def test_the_accuracy_without_copies_has_a_column_where_every_run_has_it(write, capsys):
    runs = [write("a0", 0.6, 0.6, extra={"without_copies": {"accuracy": 0.55, "num_examples": 3000}})]
    runs += [write("a1", 0.6, 0.6, seed=1, extra={"without_copies": {"accuracy": 0.58}})]
    assert results.main([*runs, "--split=test"]) == 0
    page = capsys.readouterr().out
    assert page.count("without copies") == 1
    assert [row[-1] for row in rows_of(page)] == ["56.50"]
    runs += [write("b", 0.6, 0.6, seed=2)]
    assert results.main([*runs, "--split=test"]) == 0
    assert "without copies" not in capsys.readouterr().out


def parse(line: str) -> dict:
    """Returns the config that results from a command's options, read as the command reads them."""
    program, *options = shlex.split(line, comments=True)
    assert program == "python"
    assert options[:2] == ["-m", "fer_jax.main"]
    code = (
        "import sys; from absl import flags; from fer_jax.system import command_line as c; "
        "flag = c.define_config_flag(); "
        "[flags.DEFINE_string(name, None, '') for name in ('data', 'workdir')]; "
        "c.parse(sys.argv, {}); print(flag.value.to_json())"
    )
    done = subprocess.run([sys.executable, "-c", code, *options[2:]], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_command_makes_the_run_s_experiment_again(write):
    options = {
        "model.width": 32,
        "model.stem_pool": False,
        "model.dtype": "bfloat16",
        "model.init": "my nets/net.safetensors",
        "optimizer.learning_rate": 3e-4,
        "optimizer.clip_norm": 1.0,
        "dataset.classes": "folders",
        "early_stopping.patience": 3,
        "num_epochs": 50,
        "log.every_steps": 7,
    }
    run = results.read_run(write("mine", 0.6, 0.6, seed=4, **options), results.SPLITS)
    line = results.command(run)
    assert line.startswith("python -m fer_jax.main --config=")
    assert " --workdir=runs/mine --data=fer2013.csv " in line
    assert line.endswith(" --config.seed=4")
    assert "somewhere" not in line
    assert "every_steps" not in line
    again = config_lib.make_config(**parse(line))
    different = config_lib.differences(again, run.config)
    assert different.keys() == {"dataset.path", "log.every_steps"}


def test_the_embedded_set_is_asked_for_and_has_no_official_names(write, capsys):
    run = write("drawn", 0.6, 0.6, **{"dataset.path": None, "dataset.source": "embedded"})
    for split in results.SPLITS:
        change(run, split, dataset="embedded faces", dataset_fingerprint="b326fd2395d9a543")
    assert results.main([run]) == 0
    page = capsys.readouterr().out
    assert "on test of embedded faces (`b326fd2395d9a543`)" in page
    assert "--config.dataset.source=embedded" in page
    assert "--data" not in page


@pytest.fixture
def write_voted(write):
    """Returns a function that writes a run with FER+ votes in its targets; its dataset has its own fingerprint."""

    def write_voted(name, validation, test, *, weight=0.3, fingerprint="0123456789abcdef", extra=None, **options):
        data = {"dataset": f"fer2013.csv, FER+ at {weight:g}", "dataset_fingerprint": fingerprint}
        options |= VOTES | {"dataset.ferplus_target_weight": weight}
        return write(name, validation, test, extra=data | (extra or {}), **options)

    return write_voted


@pytest.mark.parametrize("fingerprint", [None, "fedcba9876543210"], ids=["older reports", "reports"])
def test_votes_in_the_targets_are_another_experiment_on_the_same_images(write, write_voted, fingerprint, capsys):
    extra = {"split_fingerprint": fingerprint} if fingerprint else {}
    voted = [write_voted(f"voted{seed}", 0.61, 0.62, seed=seed, extra=extra) for seed in (0, 1)]
    plain = write("plain", 0.6, 0.6, extra=extra)
    assert results.main([*voted, plain, f"--baseline={plain}"]) == 0
    page = capsys.readouterr().out
    assert [row[:2] for row in rows_of(page)] == 2 * [["baseline", "1"], ["`dataset.ferplus_target_weight=0.3`", "2"]]
    assert page.count("on validation (PublicTest) of fer2013.csv (`7fcc111d81f1638f`)") == 1
    (line,) = (line for line in page.splitlines() if "--workdir=runs/voted0" in line)
    assert "somewhere" not in line
    dataset = parse(line)["dataset"]
    assert (dataset["ferplus"], dataset["ferplus_target_weight"]) == ("fer2013new.csv", 0.3)
    # With the voted runs as baseline there are the same rows, and the dataset still has its plain name.
    assert results.main([*voted, plain]) == 0
    page = capsys.readouterr().out
    assert [row[0] for row in rows_of(page)] == 2 * ["baseline", "`dataset.ferplus_target_weight=0.0`"]
    assert page.count("on test (PrivateTest) of fer2013.csv (`7fcc111d81f1638f`)") == 1


def test_votes_of_which_nothing_is_used_are_no_other_experiment(write, capsys):
    assert results.main([write("a", 0.6, 0.6), write("b", 0.6, 0.6, seed=1, **VOTES), "--split=test"]) == 0
    page = capsys.readouterr().out
    assert [row[:2] for row in rows_of(page)] == [["baseline", "2"]]
    assert "ferplus" not in page


def test_fer_plus_s_own_tasks_are_of_one_table_and_not_of_one_with_fer_2013_s_labels(write, capsys):
    def write_task(task):
        classes = {"neutral": {"support": 1100}, "contempt": {"support": 24}}
        data = {"dataset": f"fer2013.csv, FER+ {task}", "dataset_fingerprint": f"{task}123", "per_class": classes}
        return write(task, 0.8, 0.8, extra=data, **VOTES, **{"dataset.ferplus_task": task})

    plain, majority, soft = write("plain", 0.6, 0.6), write_task("majority"), write_task("soft")
    assert results.main([majority, soft, "--split=test"]) == 0
    page = capsys.readouterr().out
    assert [row[0] for row in rows_of(page)] == ["baseline", "`dataset.ferplus_task=soft`"]
    assert "--config.dataset.ferplus=fer2013new.csv --config.dataset.ferplus_task=majority " in page
    assert results.main([plain, soft]) == 2
    assert capsys.readouterr().err == (
        f"scripts.results: {soft} is evaluated on FER+'s eight classes (config.dataset.ferplus_task is soft), and "
        f"{plain} on the labels of its data: a table is of one task\n"
    )


@pytest.mark.parametrize("known", [True, False])
def test_votes_in_the_targets_hide_no_other_difference_of_the_data(write, write_voted, known, capsys):
    counts = {"per_class": {"angry": {"support": 468}, "happy": {"support": 3121}}}
    prints = [{"split_fingerprint": "1"}, {"split_fingerprint": "2"}] if known else [{}, counts]
    plain, other = write("plain", 0.6, 0.6, extra=prints[0]), write_voted("other", 0.6, 0.6, extra=prints[1])
    assert results.main([plain, other]) == 2
    assert "and their evaluations are on other images or labels: a table is of one dataset" in capsys.readouterr().err
    # Runs with equal shares of the votes must have equal training data too.
    voted, moved = write_voted("voted", 0.6, 0.6), write_voted("moved", 0.6, 0.6, seed=1, fingerprint="4321")
    assert results.main([write("unlike", 0.6, 0.6), voted, moved]) == 2
    assert f"{moved} is of fer2013.csv, FER+ at 0.3 (4321), and {voted} of " in capsys.readouterr().err


def test_each_thing_that_is_wrong_is_one_line(write, tmp_path, capsys):
    good, unfinished, other = write("good", 0.6, 0.6), write("unfinished", 0.6, 0.6), write("other", 0.6, 0.6)
    (pathlib.Path(unfinished) / "report" / "evaluation_test.json").unlink()
    for split in results.SPLITS:
        change(other, split, dataset="mine", dataset_fingerprint="1234")
    latest, torn, mixed = write("latest", 0.6, 0.6), write("torn", 0.6, 0.6), write("mixed", 0.6, 0.6)
    change(latest, "test", selected_on="not selected (latest)")
    (pathlib.Path(torn) / "report" / "evaluation_validation.json").write_text('{"accuracy": 0.')
    change(mixed, "test", checkpoint_step=99)
    empty = write("empty", 0.6, 0.6)
    (pathlib.Path(empty) / "report" / "evaluation_validation.json").write_text("{}")
    (tmp_path / "nothing").mkdir()
    runs = [good, str(tmp_path / "nothing"), unfinished, other, latest, torn, mixed, empty]
    assert results.main(runs) == 2
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    for line, run, message in zip(
        lines,
        runs[1:],
        [
            "the workdir of a run?",
            "evaluation_test.json is not there: the run is not finished, or its data have no test split",
            f"is of mine (1234), and {good} of fer2013.csv ({FINGERPRINT}): a table is of one dataset",
            "is of a checkpoint that was not selected (latest); --mode=evaluate",
            "evaluation_validation.json can't be read as an evaluation: ",
            "its reports are of different checkpoints",
            "evaluation_validation.json is no evaluation: it lacks accuracy, num_examples, ",
        ],
        strict=True,
    ):
        assert line.startswith(f"scripts.results: {run}")
        assert message in line


def test_a_seed_that_is_there_twice_is_refused(write, capsys):
    runs = [write("a", 0.6, 0.6), write("again", 0.6, 0.6)]
    assert results.main(runs) == 2
    assert f"{runs[0]} and {runs[1]} are both seed 0 of one experiment" in capsys.readouterr().err


def test_a_run_that_has_not_ended_as_its_config_says_is_refused(write, capsys):
    cut, shortened = write("cut", 0.6, 0.6, epochs=20), write("shortened", 0.6, 0.6, epochs=25, num_epochs=10)
    stopped = {"early_stopping.patience": 3, "early_stopping.min_delta": 0.5}
    early = write("early", 0.6, 0.6, epochs=4, seed=1, **stopped)
    late = write("late", 0.6, 0.6, epochs=9, seed=2, **stopped)
    assert results.main([cut, shortened, late, early]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"scripts.results: {cut}: it has trained 20 of 25 epochs; the same command again finishes it",
        f"scripts.results: {shortened}: it has trained 25 epochs, and by its config would have ended after 10",
        f"scripts.results: {late}: it has trained 9 epochs, and by its config would have ended after 4",
    ]
    assert results.main([early]) == 0


def test_views_among_which_the_best_was_chosen_are_a_part_of_the_experiment(write, capsys):
    alone, two = write("alone", 0.6, 0.6), write("two", 0.6, 0.7, seed=1)
    selected = {"view": "whole_mirrored", "validation": {"whole": 0.5, "whole_mirrored": 0.6}}
    (pathlib.Path(two) / "selection.json").write_text(json.dumps(selected))
    assert results.main([alone, two, "--split=test"]) == 0
    page = capsys.readouterr().out
    assert [row[0] for row in rows_of(page)] == ["baseline", "`evaluation.report_views=whole,whole_mirrored`"]
    *_, first, second, _ = page.splitlines()
    assert "report_views" not in first
    assert "--config.evaluation.report_views=whole,whole_mirrored" in second
    # The views of a packaged experiment need no option.
    recipe = write("recipe", 0.6, 0.6, epochs=40)
    (pathlib.Path(recipe) / "config.json").write_text(config_lib.to_json(command_line.read_config_file("wrn16_4")))
    four = dict.fromkeys(["centre_crop", "whole", "whole_mirrored", "ten_crops"], 0.5)
    (pathlib.Path(recipe) / "selection.json").write_text(json.dumps({"validation": four}))
    assert "report_views" not in results.command(results.read_run(recipe, ["test"]))


def test_a_split_that_is_asked_for_is_all_that_is_needed(write, capsys):
    run = write("a", 0.6, 0.7)
    (pathlib.Path(run) / "report" / "evaluation_test.json").unlink()
    assert results.main([run, "--split=validation"]) == 0
    assert rows_of(capsys.readouterr().out)[0][2] == "60.00"


def test_values_that_are_equal_by_chance_have_no_interval(write, capsys):
    runs = [write(f"a{seed}", 0.6, 0.6, seed=seed) for seed in (0, 1)]
    runs += [write(f"b{seed}", 0.6, 0.5 + seed / 10, seed=seed, **{"model.width": 32}) for seed in (0, 1)]
    assert results.main([*runs, "--split=test"]) == 0
    baseline, narrow = rows_of(capsys.readouterr().out)
    assert baseline[3:5] == ["0.00", "equal seeds"]
    assert narrow[5:7] == ["-5.00", "equal seeds"]


def test_fewer_than_two_values_have_no_interval():
    assert results.interval_of_mean([60.0]) is None
    assert results.interval_of_effect([61.0, 62.0], [60.0]) is None


VALUES = st.lists(st.integers(0, 1000).map(lambda number: number / 10), min_size=2, max_size=6).filter(
    lambda values: len(set(values)) > 1
)


@given(VALUES, VALUES, st.integers(-50, 50))
def test_an_effect_moves_with_its_values_and_turns_with_its_sides(values, baseline, shift):
    low, high = results.interval_of_effect(values, baseline)
    moved = results.interval_of_effect([value + shift for value in values], baseline)
    assert moved == pytest.approx((low + shift, high + shift), abs=1e-6)
    assert results.interval_of_effect(baseline, values) == pytest.approx((-high, -low), abs=1e-6)
    effect = sum(values) / len(values) - sum(baseline) / len(baseline)
    assert low - 1e-6 <= effect <= high + 1e-6
