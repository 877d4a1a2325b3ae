"""Config files and --config.key=value; the command as a process of its own is tested in end_to_end."""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

import pytest

from fer_jax.config import check, differences, make_config
from fer_jax.errors import UserError
from fer_jax.system.command_line import read_config_file

ROOT = pathlib.Path(__file__).parents[2]


def write(path: pathlib.Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def start(*options: str) -> subprocess.CompletedProcess:
    """Parses options in a process of its own, since flags can be defined and parsed once; prints the config."""
    code = (
        "import sys; from fer_jax.system import command_line as c; flag = c.define_config_flag(); "
        "c.answer_help(sys.argv, {}); c.parse(sys.argv, {}); print(flag.value and flag.value.to_json())"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, env=environment)


def test_a_config_file_is_read_and_completed(tmp_path):
    path = write(
        tmp_path / "mine.py",
        "from fer_jax.config import make_config",
        "def get_config():",
        "    return make_config(seed=3, model={'depth': 18})",
    )
    assert differences(read_config_file(path), make_config()) == {"model.depth": (18, 50), "seed": (3, 0)}


def test_a_config_file_that_sets_some_keys_of_a_bare_config_works(tmp_path):
    path = write(
        tmp_path / "mine.py",
        "from ml_collections import config_dict",
        "def get_config(depth):",
        "    config = config_dict.ConfigDict()",
        "    config.model = config_dict.ConfigDict({'depth': int(depth)})",
        "    return config",
    )
    config = read_config_file(f"{path}:34")
    check(config)
    assert differences(config, make_config()) == {"model.depth": (34, 50)}


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        (["import jaxx"], 1, "ModuleNotFoundError: No module named 'jaxx'"),
        (["x = 1", "def get_config(:"], 2, "SyntaxError: invalid syntax"),
        (["def get_config():", "    return confg"], 2, "NameError: name 'confg' is not defined"),
        (["def get_config():", "    return {}['model']"], 2, "KeyError: 'model'"),
        (
            ["def get_config():", "    return int('many')"],
            2,
            "ValueError: invalid literal for int() with base 10: 'many'",
        ),
        (
            ["def get_config():", "    return 1 + 'a'"],
            2,
            "TypeError: unsupported operand type(s) for +: 'int' and 'str'",
        ),
        (
            ["def get_config():", "    open('/nothing/there')"],
            2,
            "FileNotFoundError: [Errno 2] No such file or directory",
        ),
        (["def get_config():", "    helper()", "def helper():", "    raise RuntimeError"], 4, "RuntimeError"),
        (
            ["from fer_jax.config import make_config", "def get_config():", "    return make_config(batchsize=8)"],
            3,
            "config.batchsize is not an option; is config.batch_size meant?",
        ),
        (
            ["from fer_jax.config import make_config", "def get_config():", "    make_config().num_epoch = 3"],
            3,
            'AttributeError: Key "num_epoch" does not exist and cannot be added since the config is locked. '
            'Did you mean "num_epochs" instead of "num_epoch"?',
        ),
    ],
)
def test_an_error_in_a_config_file_is_one_short_line_with_file_and_line(lines, line, message, tmp_path):
    path = write(tmp_path / "mine.py", *lines)
    with pytest.raises(UserError) as error:
        read_config_file(path)
    assert str(error.value).startswith(f"{path}:{line}: {message}")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(path) + 300


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x = 1"], "there is no function get_config"),
        (["def get_config():", "    pass"], "get_config must return what make_config returns, not NoneType"),
        (["def get_config(text):", "    pass"], "TypeError: get_config() missing 1 required positional argument"),
        (
            [
                "from ml_collections import config_dict",
                "def get_config():",
                "    return config_dict.ConfigDict({'modle': {'depth': 18}})",
            ],
            "config.modle.depth is not an option; is config.model.depth meant?",
        ),
    ],
)
def test_a_file_that_makes_no_config_is_named(lines, message, tmp_path):
    path = write(tmp_path / "mine.py", *lines)
    with pytest.raises(UserError) as error:
        read_config_file(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"there is no file .*nothing\.py, and no experiment of that name: .*resnet50, "
    ):
        read_config_file(str(tmp_path / "nothing.py"))


def test_every_option_can_be_set_on_the_command_line_whatever_the_file_sets(tmp_path):
    path = write(
        tmp_path / "mine.py",
        "from ml_collections import config_dict",
        "def get_config():",
        "    return config_dict.ConfigDict({'augment': {'zoom': 0}})",
    )
    options = ["augment.zoom=0.25", "optimizer.clip_norm=1", "log.profile_steps=5", "dataset.split_seed=7"]
    done = start(f"--config={path}", *(f"--config.{option}" for option in options), "--noconfig.model.stem_pool")
    assert done.returncode == 0, done.stderr
    values = {"augment.zoom": 0.25, "optimizer.clip_norm": 1.0, "log.profile_steps": 5, "dataset.split_seed": 7}
    assert json.loads(done.stdout) == make_config(**values, **{"model.stem_pool": False}).to_dict()


def test_an_unknown_option_and_an_error_in_a_file_are_one_line_and_status_2(tmp_path):
    path = write(tmp_path / "mine.py", "def get_config():", "    return confg")
    done = start(f"--config={path}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"fer_jax: {path}:2: NameError: name 'confg' is not defined\n"
    done = start(f"--config={ROOT}/configs/resnet50.py", "--config.batchsize=8")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fer_jax: config.batchsize is not an option; is config.batch_size meant?\n"


def test_the_help_prints_the_options_without_a_config():
    done = start("--config.help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "model.depth = 50  (int, one of 10, 18, 34, 50, 101, 152)" in done.stdout


def run_main(*options: str, before: str = "pass", **environment: str) -> subprocess.CompletedProcess:
    code = f"import sys; from fer_jax import main; {before}; main.run()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, env=environment)


def test_help_is_short_and_has_examples():
    done = run_main("--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) < 121
    for flag in (
        "--config=",
        "--workdir=",
        "--mode=train|evaluate|export|predict|serve|audit",
        "--data=",
        "fer-jax --config=",
        "fer-jax evaluate --workdir=",
        "fer-jax export --workdir=",
        "fer-jax audit --data=",
    ):
        assert any(line.strip().startswith(flag) for line in lines), flag


def test_a_command_has_a_help_of_its_own():
    done = run_main("evaluate", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0] == "fer-jax evaluate [--FLAG=VALUE ...]"
    assert any(line.startswith("--split=validation|test ") for line in lines)
    assert not any(line.startswith("--out=") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprt"], "'exprt' is no option, which begins with --, and no command, which comes first: train, evaluate, "),
        (["export", "more"], "'more' is no option"),
        (["export", "--mode=train"], "export and --mode both say what to do; leave one out"),
        (
            ["--config=resnet50", "--out=net.onnx"],
            "--out goes with --mode=export and --mode=predict, not with --mode=train",
        ),
        (["audit", "--data="], "--data is empty; give it a value or leave it out"),
        (["audit", "--split=test"], "--split goes with --mode=evaluate, not with --mode=audit"),
        (
            ["train", "--weights=a.safetensors"],
            "--weights goes with --mode=evaluate and --mode=export and --mode=predict and --mode=serve, not with",
        ),
    ],
)
def test_words_and_flags_that_a_command_does_not_take_are_one_line(arguments, message):
    done = run_main(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"fer_jax: {message}")
    assert len(done.stderr.splitlines()) == 1


def test_the_package_is_the_program_too():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "fer_jax", "--version"], capture_output=True, text=True, env=environment
    )
    assert done.stdout == f"fer_jax {importlib.metadata.version('fer_jax')}\n"


def test_the_version_is_that_of_the_package():
    assert run_main("--version").stdout == f"fer_jax {importlib.metadata.version('fer_jax')}\n"


def test_a_packaged_experiment_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named, given = read_config_file("resnet50"), read_config_file(str(ROOT / "configs" / "resnet50.py"))
    assert differences(named, given) == {}
    # A file of that name takes precedence.
    write(tmp_path / "resnet50", "from fer_jax.config import make_config", "get_config = lambda: make_config(seed=9)")
    assert read_config_file("resnet50").seed == 9
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_config_file("~/resnet50").seed == 9


def test_windows_is_refused_in_one_line():
    done = run_main("--config=resnet50", before="sys.platform = 'win32'")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fer_jax: it runs on Linux and macOS; on Windows, inside WSL\n"


@pytest.mark.parametrize(
    ("command", "platform", "expected"),
    [
        (["--config=resnet50", "--workdir=run"], "cuda", "pip install 'fer_jax[cuda]' brings it"),
        (["--config=resnet50", "--workdir=run"], "quantum", "no such device here"),
        (["predict", str(ROOT / "tests" / "fixtures" / "astronaut.jpg")], "cuda", "no such device here"),
        (["serve"], "cuda", "no such device here"),
    ],
)
def test_devices_that_are_not_there_are_one_line_and_status_2(command, platform, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_main(*command, JAX_PLATFORMS=platform)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fer_jax: ")]
    assert line.startswith(f"fer_jax: JAX_PLATFORMS is {platform}, and there is no such device here")
    assert expected in line
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
