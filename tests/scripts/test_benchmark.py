"""The benchmark: its arithmetic, and its worker processes with a tiny network of ours."""

import argparse
import inspect
import io
import json
import math
import os
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import machine
from fer_jax.models import flops
from fer_jax.recipe import state
from scripts.benchmark import __main__ as command
from scripts.benchmark import comparison as comparison_lib
from scripts.benchmark import conv, peers, trace
from scripts.benchmark.peers import ours
from scripts.benchmark.peers.worker import Worker, serve

TINY = {"depth": 10, "stages": 2, "width": 4, "stem_kernel": 3, "stem_stride": 2, "stem_pool": False, "conv": "lax"}
SPEC = {"peer": "ours", "task": "step", "batch": 2, "image_size": 48, "model": TINY}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Lets workers take turns without a pause."""
    monkeypatch.setattr(comparison_lib, "PAUSE_SECONDS", 0)


def comparison(**changes) -> dict:
    seconds = {"ours": [0.1, 0.2, 0.4], "theirs": [0.3, 0.4, 0.4]}
    figures = comparison_lib.summarize(seconds, images=8)
    return {"title": "step, batch 8", "rounds": 3, "contestants": figures, "left_out": {}} | changes


def test_ratios_are_taken_round_by_round():
    theirs = comparison()["contestants"]["theirs"]
    np.testing.assert_allclose(theirs["ratios"], [3.0, 2.0, 1.0])
    assert math.isclose(theirs["ratio"], 2.0)  # the ratio of the means would be 1.57
    assert (theirs["median"], theirs["min"], theirs["max"]) == (0.4, 0.3, 0.4)
    assert math.isclose(theirs["images_per_second"], 20.0)
    assert comparison()["contestants"]["ours"]["ratios"] == [1.0, 1.0, 1.0]


def test_the_table_has_every_contestant_and_who_is_left_out():
    lines = comparison_lib.table(comparison(left_out={"absent": "it is not installed"})).splitlines()
    assert lines[0] == "step, batch 8, 3 rounds"
    assert lines[2].split() == ["ours", "200.00", "100.00..400.00", "40", "1.000", "1.00..1.00"]
    assert lines[3].split() == ["theirs", "400.00", "300.00..400.00", "20", "2.000", "1.00..3.00"]
    assert lines[4] == "absent is left out: it is not installed"


def test_turns_go_round_and_the_first_round_is_not_counted():
    taken = []
    turns = {name: lambda name=name: taken.append(name) or len(taken) for name in "AB"}
    assert comparison_lib.measure_in_turn(turns, rounds=2) == {"A": [3, 5], "B": [4, 6]}
    assert "".join(taken) == "ABABAB"


def test_onnx_runtime_joins_for_inference_in_float32_alone():
    def names(task):
        specs = peers.make_specs(
            task,
            peers=list(peers.PEERS),
            dtypes=["bfloat16", "float32"],
            batch=1,
            net="resnet50-7/2/pool",
            image_size=48,
        )
        return [name for name in specs if name.startswith("onnxruntime")]

    assert names("step") == []
    assert names("inference") == ["onnxruntime float32"]


def test_a_worker_answers_every_request():
    with Worker(SPEC | {"task": "augment"}) as worker:
        assert {"jax", "flax"} <= worker.versions.keys()
        assert all(worker.measure(calls) > 0 for calls in (1, 3))


def test_a_worker_waits_for_the_last_call_of_a_turn_alone(monkeypatch):
    done, answers = [], io.StringIO()
    device = types.ModuleType("device")
    device.PACKAGES = ()
    device.make = lambda spec: (lambda: done.append("call") or len(done), 0)
    device.wait = lambda result: done.append(f"wait for {result}")
    monkeypatch.setitem(sys.modules, "scripts.benchmark.peers.device", device)
    serve({"peer": "device"}, ["3"], answers)
    warm_up = ["call", "wait for 1", "call", "wait for 3", "call", "wait for 5"]
    assert done == [*warm_up, "call", "call", "call", "wait for 9"]
    ready, seconds = map(json.loads, answers.getvalue().splitlines())
    assert ready == {"versions": {}, "parameters": 0}
    assert seconds > 0


def test_a_worker_says_what_memory_it_had_and_ends_at_its_limit():
    with Worker(SPEC | {"task": "augment"}) as worker:
        memory = worker.memory()
        assert memory["device"] is None  # on a CPU
        assert memory["host"] > 50e6
        worker.limit(0)
        with pytest.raises((TimeoutError, BrokenPipeError)):
            worker.measure(10**9)
    with pytest.raises(TimeoutError, match="no time left"):
        Worker(SPEC, seconds=0)


@pytest.mark.parametrize("loader", ["tf.data", "device"])
def test_a_worker_takes_several_steps_in_a_call(loader):
    with Worker(SPEC | {"task": "calls", "loader": loader, "steps": 4, "steps_per_call": 2}) as worker:
        assert worker.measure(1) > 0


@pytest.mark.parametrize("in_call", [1, 2])
def test_as_many_steps_are_taken_as_are_counted_on_images_of_the_size(in_call, monkeypatch):
    monkeypatch.setattr(ours, "NUM_IMAGES", 11)  # five steps of two images, an odd number for calls of two steps
    spec = SPEC | {"task": "calls", "image_size": 40, "loader": "tf.data", "steps": 4, "steps_per_call": in_call}
    run, _ = ours.make(spec)
    for _ in range(3):
        run()
    inside = inspect.getclosurevars(run).nonlocals
    assert inside["train_state"].step == 3 * 4
    assert inside["program"].flops == flops.training_flops(ours.make_network(spec), (40, 40, 1))
    with pytest.raises(ValueError, match="3 steps are no multiple of 2 in a call"):
        ours.make(spec | {"steps": 3, "steps_per_call": 2})


def test_the_state_of_a_step_is_made_with_few_compilations():
    compiled = []

    def count(event, *_, **__):
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        # No other test has compiled anything for this size.
        ours.make(SPEC | {"image_size": 41, "model": TINY | {"width": 3}})
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert 0 < sum("backend_compile" in event for event in compiled) < 30  # 9 here; 120 if the network is applied


def test_a_worker_says_why_its_library_cannot_be_loaded(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(RuntimeError, match=r"status 1: OSError: libcudart\.so: cannot open"):
        Worker({"peer": "torch_resnet"})


def test_pytorch_on_another_platform_than_jax_is_refused():
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[bench]'")
    with pytest.raises(RuntimeError, match="this PyTorch computes on cpu, and JAX on gpu"):
        Worker({"peer": "torch_resnet", "platform": "gpu"})


def test_a_worker_names_the_module_that_is_missing_and_dies_aloud():
    with pytest.raises(ModuleNotFoundError, match=r"scripts\.benchmark\.peers\.absent"):
        Worker({"peer": "absent"})
    with pytest.raises(RuntimeError, match="status 1: KeyError: 'absent'"):
        Worker(SPEC | {"task": "absent"})


def test_the_json_file_has_what_was_compared_and_on_what(tmp_path, monkeypatch, capsys):
    specs = {"ours": SPEC, "absent": {"peer": "absent"}}
    monkeypatch.setattr(command, "make_specs", lambda *_, **__: specs)
    path = tmp_path / "new" / "step.json"
    command.main(["step", "--batch", "2", "--rounds", "2", "--json", str(path)])
    written = json.loads(path.read_text())
    assert written["machine"].keys() >= {"processor", "cores", "python", "platform", "GLIBC_TUNABLES"}
    (compared,) = written["comparisons"]
    assert compared["title"] == "step, resnet50-7/2/pool, 48 px, batch 2"
    assert compared["left_out"].keys() == {"absent"}
    figures = compared["contestants"]["ours"]
    assert figures["spec"] == SPEC
    assert figures["versions"].keys() >= {"jax", "flax"}
    assert len(figures["seconds"]) == 2
    assert figures["ratios"] == [1.0, 1.0]
    assert comparison_lib.table(compared) in capsys.readouterr().out


def num_parameters(net: str) -> int:
    specs = peers.make_specs("step", peers=["ours"], dtypes=["float32"], batch=1, net=net, image_size=48)
    model = ours.make_network(specs["ours float32"])
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 48, 48, 1)), train=False))
    return state.num_parameters(variables["params"])


def test_our_networks_are_those_that_they_are_called():
    # ResNet-50 and ResNet-18 of the paper, for one channel and seven classes.
    assert {net: num_parameters(net) for net in peers.NETS} == {
        "resnet50-7/2/pool": 23_512_967 + 64 * 49,
        "resnet50-3/2/none": 23_512_967 + 64 * 9,
        "resnet50-3/1/none": 23_512_967 + 64 * 9,
        "resnet18-3/1/pool": 11_170_695 + 64 * 9,
        "resnet18-3/2/none": 11_170_695 + 64 * 9,
        "three-stages-3/1/pool": 2_775_175 + 64 * 9,
    }


@pytest.mark.parametrize("net", peers.NETS)
def test_pytorchs_network_is_ours(net):
    torch = pytest.importorskip("torch")
    from scripts.benchmark.peers import torch_resnet

    with torch.device("meta"):
        network = torch_resnet.ResNet(**peers.NETS[net])
    assert sum(weights.numel() for weights in network.parameters()) == num_parameters(net)


def test_each_convolution_is_timed_by_every_way():
    (result,) = conv.measure("float32", rounds=1, shapes=((6, 8, 16, 3, 1, 2),))
    assert {"matmul", "lax"} <= result["gflops"].keys()
    assert all(rate > 0 for rates in result["gflops"].values() for rate in rates)
    assert conv.table([result]).splitlines()[-1].startswith("| 6 px, 8 to 16, 3x3, 1, 2 | ")


def test_the_table_has_the_native_rates_as_shares_of_the_peak():
    gflops = {"native": (50.0, 25.0, 10.0), "lax": (20.0, 20.0, 20.0)}
    lines = conv.table([{"shape": [6, 8, 16, 3, 1, 2], "gflops": gflops}], peak=100.0).splitlines()
    assert lines[0] == "| image, channels, window, stride, batch | native | of the peak | lax |"
    assert lines[2] == "| 6 px, 8 to 16, 3x3, 1, 2 | 50 / 25 / 10 | 50% / 25% / 10% | 20 / 20 / 20 |"


def test_without_a_compiler_there_is_no_peak(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert conv.peaks() == {}
    assert capsys.readouterr().out.startswith("The peak is not measured: no C++ compiler")


@pytest.mark.parametrize(
    ("flags", "dtype"), [({"avx2", "fma"}, "float32"), ({"avx2", "fma", "avx512_bf16"}, "bfloat16")]
)
def test_the_bare_step_of_an_epoch_has_the_dtype_that_the_command_chooses(monkeypatch, flags, dtype):
    class Chosen(Exception):
        pass

    def worker(spec):
        raise Chosen(spec)

    monkeypatch.setattr(command, "Worker", worker)
    arguments = argparse.Namespace(net=["resnet18-3/1/pool"], batch=[128], data=None, rounds=1)
    with pytest.raises(Chosen) as chosen:
        next(command.benchmark_end_to_end(arguments))
    (spec,) = chosen.value.args
    monkeypatch.setattr(machine, "processor_flags", lambda *_: flags)
    # The convolution doesn't matter here, and the one that is chosen may need a compiler.
    model = ours.make_network(spec | {"model": spec["model"] | {"conv": "lax"}})
    assert jnp.dtype(model.dtype) == dtype


PROGRAM = """
%fused_computation.7 (param: bf16[2]) -> f32[2] {
  ROOT %add.3 = f32[2]{0} add(%a, %b), metadata={op_name="jit(step)/jvp(ResNet)/stage1_block1/BatchNorm_0/add"}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %ffi_call.1 = bf16[2]{0} custom-call(%x), custom_call_target="fer_jax_conv_input_gradient_bfloat16"
  %fusion.2 = f32[2]{0} fusion(%ffi_call.1), kind=kLoop, calls=%fused_computation.7
  %convolution.5 = f32[2]{0} convolution(%x), metadata={op_name="jit(step)/transpose(jvp(ResNet))/stem_conv/conv"}
  ROOT %copy.1 = f32[2]{0} copy(%fusion.2)
}
"""


def test_the_trace_is_summed_by_kind_of_operation():
    names = trace.names_of_operations(PROGRAM)
    assert [trace.kind_of(names[name]) for name in ("ffi_call.1", "fusion.2", "convolution.5", "copy.1")] == [
        "convolution: dx",
        "batch norm, ReLU, shortcut: applied",
        "convolution: dW",
        "other",
    ]
    events = [{"ph": "X", "dur": 4000.0, "args": {"hlo_op": "ffi_call.1"}}] * 3
    events += [{"ph": "X", "dur": 1000.0, "args": {"hlo_op": "copy.1"}}, {"ph": "X", "dur": 9.0}, {"ph": "M"}]
    assert trace.milliseconds_by_kind(events, names, steps=2) == {"convolution: dx": 6.0, "other": 0.5}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fer_jax_conv_kernel_gradient_float32", "convolution: dW"),
        ("fer_jax_conv_float32", "convolution: forward"),
        ("fer_jax_moments_float32", "batch norm: sums"),
        ("jit(step)/jvp(ResNet)/stage1_block1/BatchNorm_0/max", "batch norm, ReLU, shortcut: applied"),
        ("jit(step)/transpose(jvp(ResNet))/stage1_block1/ConvNorm_1/sub", "batch norm, ReLU, shortcut: applied"),
        ("jit(step)/jvp(ResNet)/stage1_block1/ConvNorm_1/Conv_1/dot_general", "convolution: forward"),
        ("jit(step)/transpose(jvp(ResNet))/add", "batch norm, ReLU, shortcut: applied"),
        ("jit(step)/jvp(ResNet)/max", "max pooling"),
        ("jit(step)/transpose(jvp(ResNet))/stack", "max pooling"),
        ("jit(repeated)/vmap()/mul", "augmentation"),
        ("jit(repeated)/mul", "optimizer"),
        ("jit(step)/jvp(ResNet)/head/dot_general", "other"),
    ],
)
def test_operations_have_the_kind_that_their_names_say(name, kind):
    assert trace.kind_of(name) == kind
