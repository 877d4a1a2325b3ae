"""The README against what it speaks of."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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
