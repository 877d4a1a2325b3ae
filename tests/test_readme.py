"""README and docs/ agree with the files, options and flags that they describe."""

import pathlib
import re
import runpy

import pytest
from absl import flags

from fer_jax import main  # noqa: F401  defines the flags
from fer_jax.config import flatten
from fer_jax.options.table import OPTIONS

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_gate_runs_exactly_the_readme_s_test_command():
    commands = re.findall(r"```bash\n(.*pytest)\n```", README)
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_file_that_the_readme_shows_or_lists_is_there():
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    block = re.search(r"## The code\n\n```\n(.*?)```", README, re.DOTALL)[1]
    listed = set(re.findall(r"(\w+\.py)", block))
    assert len(linked) > 1
    assert all((ROOT / path).exists() for path in linked)
    present = {path.name for folder in ("fer_jax", "configs") for path in (ROOT / folder).rglob("*.py")}
    assert listed == present - {"__init__.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_sets_may_have_the_value(page):
    for key, text in re.findall(r"--config\.([\w.]+)=([\w.,:/-]*\w)", page.read_text()):
        if text.isupper():  # a placeholder, such as PATH
            continue
        option = OPTIONS[key]
        value = text == "True" if text in ("True", "False") else option.type(text)
        assert option.accepts(value), f"{key}={text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_of_the_command_that_a_page_types_is_one(page):
    known = {*flags.FLAGS, "config", "help"}
    commands = re.findall(r"(?:fer-jax|-m fer_jax(?:\.main)?)( [^`\n|#]*)", page.read_text().replace("\\\n", " "))
    typed = {flag for command in commands for flag in re.findall(r" --(\w+)", command)}
    assert typed <= known


def test_each_ingredient_of_a_recipe_is_in_an_experiment_or_was_measured():
    sections = ("augment", "dataset.ferplus", "ema", "loss", "mix", "model", "optimizer", "preprocessing")
    # How a network is computed or initialised is no ingredient, and clipping is only advised for a run that diverges.
    others = {"model.conv", "model.dtype", "model.init", "model.remat", "model.sync_batch_norm", "optimizer.clip_norm"}
    ingredients = {key for key in OPTIONS if key.startswith(sections)} - others
    used = {
        key
        for path in (ROOT / "configs").glob("*.py")
        for key, value in flatten(runpy.run_path(str(path))["get_config"]())
        if value not in (None, 0, "none")  # these values mean off
    }
    measured = set(re.findall(r"--config\.([\w.]+)=", (ROOT / "docs" / "results.md").read_text()))
    assert ingredients - used - measured == set()
