"""A real run of all sections on a CPU with a tiny network; a section that fails or has no time stops no other."""

import argparse
import contextlib
import json
import time

import jax
import jax.numpy as jnp
import pytest

from fer_jax.recipe import state
from scripts.benchmark import accelerator
from scripts.benchmark.peers import flax_resnet, ours
from scripts.benchmark.peers.worker import Worker
from tests.support.tiny_run import write_faces

TINY = [
    "--nets",
    "wrn16_4",
    "--model",
    '{"depth": 10, "stages": 2, "width": 2, "dtype": "float32"}',
    "--batch",
    "8",
    "--rounds",
    "1",
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    # A restart for huge pages would start every process twice.
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    jax.devices()  # initialised now, so that this process keeps its devices
    monkeypatch.setenv("XLA_FLAGS", "")  # the other processes have a single device


def test_one_command_measures_all_and_names_what_is_missing(tmp_path, capsys):
    path, data = tmp_path / "new" / "all.json", write_faces(tmp_path / "faces.csv")
    # The other sections are tested below, except calls, which takes as long as this test and is in test_benchmark.py.
    sections = ["--sections", "nets", "epoch"]
    peers = ["--contestants", "ours", "torch"]
    accelerator.main([*TINY, *sections, *peers, "--minutes", "9", "--data", str(data), "--json", str(path)])
    said = capsys.readouterr().out
    written = json.loads(path.read_text())
    assert written["machine"]["platform"] == "cpu"
    assert written["machine"]["flops"]["wrn16_4"] > 0
    measured = {line["what"]: line for line in written["measured"]}
    for name in ("ours step", "ours inference"):
        figures = measured[name]["figures"]
        assert figures["median"] > 0
        # The median is the time of 8 images; without the backward pass there are a third of the FLOPs.
        share = 1 if "step" in name else 1 / 3
        flops = share * written["machine"]["flops"]["wrn16_4"] * 8 / figures["median"]
        assert figures["tflops"] == pytest.approx(flops / 1e12)
        assert figures["memory"]["host"] > 50e6
        assert "mfu" not in figures  # the peak of a CPU is not known
        assert f"| wrn16_4 | {name} | {figures['median'] * 1e3:,.2f} |" in said
    with contextlib.suppress(ModuleNotFoundError):
        import torch  # noqa: F401

        assert measured["torch step"]["figures"]["median"] > 0
    if not measured["torch step"]["figures"]:
        assert "| wrn16_4 | torch step | not measured: torch is not installed |" in said
    epoch = measured["wrn16_4, by the command"]["figures"]
    step = measured["ours step"]["figures"]["images_per_second"]
    assert epoch["share_of_step"] == pytest.approx(epoch["images_per_second"] / (step * written["machine"]["devices"]))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["faces.csv", "new"]  # nothing beside the data


def test_two_deterministic_runs_are_compiled_twice(tmp_path, monkeypatch):
    cache = tmp_path / "programs"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    path = tmp_path / "runs.json"
    accelerator.main([*TINY, "--batch", "56", "--sections", "determinism", "--json", str(path)])
    (measured,) = json.loads(path.read_text())["measured"]
    assert measured["figures"]["equal"] is True
    assert measured["figures"]["runs"][0]["step"] == 1400 // 56
    # The name of the steps of fer_jax/recipe/step.py; the process that compares the parameters may cache its own.
    assert not list(cache.glob("jit_repeated*"))


def test_a_mistyped_option_is_said_at_once(tmp_path, capsys):
    for option, value, why in (
        ("--data", tmp_path / "fer2013.csv", "there is no such file or folder"),
        ("--peers-python", tmp_path / "python", "there is no such program"),
    ):
        with pytest.raises(SystemExit) as ended:
            accelerator.main([*TINY, option, str(value)])
        assert ended.value.code == 2
        assert f"{option}={value}: {why}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_programs_are_kept_in_the_user_s_cache_unless_there_is_another(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    kept = {"own": tmp_path / "own", None: tmp_path / "user" / "fer_jax" / "programs"}
    for given, folder in kept.items():
        if given:
            monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        else:
            monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        with Worker({"peer": "ours", "task": "augment", "batch": 2, "image_size": 48}) as worker:
            assert worker.measure(1) > 0
        assert list(folder.rglob("*-cache"))
        assert (tmp_path / "user").exists() == (not given)


def test_finished_rounds_are_kept_where_the_time_is_over():
    spec = {"peer": "ours", "task": "augment", "batch": 2, "image_size": 48}
    clock = accelerator.Clock(time.monotonic() + 300)

    class Late(Worker):
        """A worker with time for the first two turns, one of which is counted."""

        turns = 0

        def measure(self, calls):
            self.turns += 1
            if self.turns == 3:
                self.limit(0)
                calls = 10**9
            return super().measure(calls)

    with Late(spec) as late:
        found, failed = accelerator.take_turns({"late": late}, clock, 3)
    assert failed == {}
    assert len(found["late"]["seconds"]) == 1
    assert found["late"]["memory"]["host"] > 50e6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_bfloat16_has_a_share_of_the_peak_which_is_of_bfloat16(dtype, monkeypatch):
    monkeypatch.setattr(accelerator, "TASKS", {"inference": 1 / 3})
    model = {"depth": 10, "stages": 2, "width": 2, "conv": "lax", "dtype": dtype}
    arguments = argparse.Namespace(model=model, batch=2, contestants=["ours"], rounds=1, peers_python=None)
    machine = {"platform": "cpu", "dtype": "bfloat16", "peak": 1e12, "flops": {"wrn16_4": 10**6}}
    clock = accelerator.Clock(time.monotonic() + 300)
    for measured in accelerator.measure_net("wrn16_4", clock, arguments, machine):
        assert measured.figures["tflops"] > 0, measured.failed
        assert ("mfu" in measured.figures) == (dtype == "bfloat16")


def test_a_section_that_fails_ends_no_other(tmp_path, capsys):
    absent = str(tmp_path / "absent.csv")
    (tmp_path / "absent.csv").mkdir()  # an empty folder
    path = tmp_path / "some.json"
    accelerator.main([*TINY, "--sections", "loaders", "epoch", "--data", absent, "--json", str(path)])
    loaders, _, epoch = json.loads(path.read_text())["measured"]
    assert loaders["figures"]["images_per_second"] > 0
    assert not epoch["figures"]
    assert "| epoch | epoch wrn16_4 | not measured: the command ended with status 2 |" in capsys.readouterr().out


def test_what_has_no_time_is_said():
    late = accelerator.Clock(time.monotonic() - 1)
    with contextlib.ExitStack() as stack:
        workers, left_out = accelerator.start_all({"ours step": {"peer": "ours"}}, late, stack)
    assert workers == {}
    assert left_out == {"ours step": "there was no time left for it"}
    line = accelerator.Measured("nets wrn16_4", "ours step", failed=left_out["ours step"])
    machine = {"device": "x", "platform": "cpu", "dtype": "float32", "jax": "1"}
    assert "| wrn16_4 | ours step | not measured: there was no time left for it | | | | |  |" in accelerator.table(
        [line], machine
    )


def test_contestants_that_fail_are_named_and_on_a_tpu_one_follows_the_other():
    spec = {"peer": "ours", "task": "augment", "batch": 2, "image_size": 48}
    specs = {"good": spec, "bad": spec | {"task": "absent"}, "missing": spec | {"peer": "absent"}, "again": spec}
    arguments = type("Arguments", (), {"rounds": 1})
    clock = accelerator.Clock(time.monotonic() + 300)
    found, left_out = accelerator.measure_specs(specs, clock, arguments, {"platform": "tpu"})
    assert found.keys() == {"good", "again"}
    assert "KeyError: 'absent'" in left_out["bad"]
    assert left_out["missing"] == "scripts.benchmark.peers.absent is not installed"


def net_of(name: str) -> dict:
    return accelerator.net_of(name, type("Arguments", (), {"model": {}, "batch": None}))


def test_the_nets_are_those_of_the_configs():
    sizes = {name: (net_of(name)["image_size"], net_of(name)["batch"]) for name in accelerator.NETS}
    assert sizes == {"resnet50": (48, 64), "wrn16_4": (40, 128), "resnet34_gpu": (44, 256)}


def num_parameters(model, size: int) -> int:
    images = jnp.zeros((1, size, size, 1))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return state.num_parameters(variables["params"])


@pytest.mark.parametrize("name", accelerator.NETS)
def test_every_contestant_has_the_shipped_network(name):
    net = net_of(name)
    wanted = num_parameters(ours.make_network({"model": net["model"] | {"conv": "lax"}}), net["image_size"])
    assert num_parameters(flax_resnet.ResNet(**net["model"], dtype="float32"), net["image_size"]) == wanted
    torch = pytest.importorskip("torch")
    from scripts.benchmark.peers import torch_resnet

    with torch.device("meta"):
        network = torch_resnet.ResNet(**net["model"])
    assert sum(weights.numel() for weights in network.parameters()) == wanted
