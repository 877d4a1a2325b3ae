"""Rules for the code: imports run downwards, importing is quick, and modules are short and documented."""

import ast
import io
import pathlib
import subprocess
import sys
import tokenize

import pytest

import fer_jax

ROOT = pathlib.Path(fer_jax.__file__).parent
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
# The floors from top to bottom: a module imports only from its own floor and those below.
FLOORS = [
    {"main", "__main__"},
    {"train", "explain"},
    {"evaluate", "export", "audit", "predict", "serve"},
    {"loop", "faces"},
    {"exports"},
    {"inference"},
    {"workdir"},
    {"data"},
    {"system"},
    {"config"},
    {"options"},
    {"recipe", "models", "parallel"},
    {"native"},
    {"errors", "machine", "pretrained"},
]


def room_of(module: str) -> str:
    return module.split("/")[0].removesuffix(".py")


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imported_rooms(path: pathlib.Path) -> set[str]:
    """Returns the rooms (top-level modules and packages) of fer_jax that are imported anywhere in a file."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fer_jax":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fer_jax."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("fer_jax.")}
    return rooms


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__.py"])
def test_imports_run_downwards(module):
    floor = floor_of(room_of(module))
    for room in imported_rooms(ROOT / module):
        assert floor_of(room) >= floor, f"{module} imports {room}, which is above it"


def test_recipe_and_models_touch_nothing():
    for module in MODULES:
        if room_of(module) in ("recipe", "models"):
            tree = ast.parse((ROOT / module).read_text())
            names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            assert not names & {"os", "pathlib", "sys", "time", "threading", "subprocess"}, module


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_no_more_than_300_lines_and_plain_docstrings(module):
    text = (ROOT / module).read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            docstring = ast.get_docstring(node) or ""
            assert not docstring.startswith("Gives"), docstring


def test_comments_say_why_where_it_matters():
    lines = comments = 0
    for module in MODULES:
        text = (ROOT / module).read_text()
        lines += len(text.splitlines())
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments += len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})
    assert 0.05 <= comments / lines <= 0.08, f"{comments} of {lines} lines"


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, fer_jax; sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'tensorflow', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_classifier_is_exported():
    from fer_jax.faces.classifier import Classifier

    assert fer_jax.Classifier is Classifier
    with pytest.raises(AttributeError, match="nothing"):
        _ = fer_jax.nothing


def test_tests_stand_on_tests_support_and_not_on_the_scripts():
    tests = ROOT.parent / "tests"
    for path in tests.rglob("*.py"):
        if path.parent.name != "scripts":
            modules = [n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
            assert not any(module.split(".")[0] == "scripts" for module in modules), path
