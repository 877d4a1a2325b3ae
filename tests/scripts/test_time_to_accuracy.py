"""The clock and the file of runs, by a real run of the command; the PyTorch program's recipe by value against ours."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import config as config_lib
from fer_jax import parallel
from fer_jax.inference.preprocessing import Preprocessing
from fer_jax.inference.torch_names import to_torch
from fer_jax.inference.trained_model import make_model
from fer_jax.loop.program import make_training
from fer_jax.recipe.images import AugmentConfig, augment, standardize
from fer_jax.recipe.optimizer import make_schedule
from scripts.benchmark import time_to_accuracy

TINY = [
    *("--config.model.depth=10", "--config.model.stages=1", "--config.model.width=2", "--config.model.conv=lax"),
    *("--config.model.dtype=float32", "--config.num_epochs=2", "--config.optimizer.warmup_epochs=1"),
    *("--config.augment.rotation=0", "--config.augment.zoom=0", "--config.dataset.source=embedded"),
    "--config.evaluation.report_views=whole",
]
EPOCHS = [
    {"epoch": 1, "seconds": 60.0, "accuracy": {"validation": 0.5, "validation_ema": 0.4}},
    {"epoch": 2, "seconds": 30.0, "accuracy": {"validation": 0.5, "validation_ema": 0.65}},
    {"epoch": 3, "seconds": 30.0, "accuracy": {"validation": 0.6, "validation_ema": 0.6}},
]


def test_a_target_is_reached_by_the_better_weights_at_the_end_of_an_epoch():
    assert time_to_accuracy.reached(EPOCHS, 0.5) == (1, 60.0)
    assert time_to_accuracy.reached(EPOCHS, 0.51) == time_to_accuracy.reached(EPOCHS, 0.65) == (2, 90.0)
    assert time_to_accuracy.reached(EPOCHS, 0.66) is None


def test_the_table_has_means_deviations_and_who_did_not_make_it():
    slower = [epoch | {"seconds": 2 * epoch["seconds"], "accuracy": {"validation": 0.6}} for epoch in EPOCHS]
    lines = time_to_accuracy.table({"ours": [{"epochs": EPOCHS}, {"epochs": slower}]}, [60.0, 65.0, 99.0])
    assert lines.splitlines()[2] == (
        "| ours | 2 | 1.75 ± 0.35 | 1.50 (1 of 2 runs) | not reached | 3.00 ± 1.41 | 62.50 ± 3.54 |"
    )


def test_an_epoch_s_seconds_are_its_images_at_its_last_speed():
    def train(step, epoch, speed):
        return {"step": step, "epoch": epoch, "kind": "train", "loss": 1.0, "images_per_second": speed}

    events = [
        *(train(50, 1, 1.0), train(60, 1, 120.0), train(100, 2, 2.0), train(120, 2, 60.0)),
        {"step": 60, "epoch": 1, "kind": "validation", "accuracy": 0.25},
        {"step": 120, "epoch": 2, "kind": "validation", "accuracy": 0.5},
    ]
    epochs = time_to_accuracy.read_epochs(events, batch_size=4)
    assert [epoch["seconds"] for epoch in epochs] == [2.0, 4.0]
    assert [epoch["accuracy"] for epoch in epochs] == [{"validation": 0.25}, {"validation": 0.5}]


def test_the_command_is_measured_once_and_its_run_is_kept(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # a single device
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # without a restart for huge pages
    path = tmp_path / "new" / "runs.jsonl"
    arguments = ["--contestants", "ours", "--json", str(path), *TINY]
    time_to_accuracy.main(["--target", "1", "100", *arguments])
    said = capfd.readouterr().out
    (row,) = map(json.loads, path.read_text().splitlines())
    assert [epoch["epoch"] for epoch in row["epochs"]] == [1, 2]
    assert all(epoch["seconds"] > 0 for epoch in row["epochs"])
    assert all(epoch["accuracy"].keys() == {"validation", "validation_ema"} for epoch in row["epochs"])
    assert row["settings"]["config"]["model.width"] == 2
    assert re.search(r"\| ours \| 1 \| \d+\.\d\d \| not reached \|", said)
    # The same recipe is read from the file, whatever the target; another recipe would be trained.
    time_to_accuracy.main(["--target", "2", *arguments])
    assert "ours, seed 0: is in" in capfd.readouterr().out
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--config.mix.mixup=0.2"], "config.mix.mixup is 0.2, which the PyTorch program doesn't have"),
        (["--config=configs/resnet50.py"], "config.optimizer.name is adam"),
        (["--config.evaluation.view=ten_crops"], "a view of one picture"),
        (["--config.model.widht=4"], "widht"),
        (["--config.num_epochs=many"], "many"),
        (["--rnus=2"], "rnus"),
        (["word"], "'word' is no option"),
        (["--json=runs"], "--json=runs must be a file with a suffix"),
        (["--peers-python=absent/python"], "--peers-python=absent/python: there is no such program"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(options, words, tmp_path):
    with pytest.raises(SystemExit) as ended:
        time_to_accuracy.main([*TINY, "--json", str(tmp_path / "runs.jsonl"), *options])
    assert words in str(ended.value)
    assert "\n" not in str(ended.value)


@pytest.fixture
def python_with_a_gpu(tmp_path):
    """Writes a stand-in for a Python with torch that claims to train on a GPU and records the GPUs that it sees."""
    python, first = tmp_path / "python", {"torch": "2", "device": "NVIDIA H100", "dtype": "bfloat16"}
    python.write_text(
        '#!/bin/bash\n[[ "$1" == -c ]] && exit\n'
        f"echo \"GPU $CUDA_VISIBLE_DEVICES\" > {tmp_path}/seen\necho '{json.dumps(first)}'\nexec sleep 60\n"
    )
    python.chmod(0o755)
    return python


@pytest.mark.parametrize(("chosen", "expected"), [(None, "0"), ("3", "3")])
def test_pytorch_on_another_kind_of_device_is_refused_and_sees_one_gpu(
    python_with_a_gpu, chosen, expected, tmp_path, monkeypatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if chosen:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    options = ["--contestants", "pytorch", "--peers-python", str(python_with_a_gpu)]
    with pytest.raises(SystemExit, match=r"JAX computes on cpu and .*python's PyTorch on NVIDIA H100; [^\n]*$"):
        time_to_accuracy.main([*TINY, *options, "--json", str(tmp_path / "runs.jsonl")])
    assert (tmp_path / "seen").read_text() == f"GPU {expected}\n"


# --- The PyTorch program's recipe.


def recipe_of(*overrides: str) -> config_lib.config_dict.ConfigDict:
    return time_to_accuracy.read_config("configs/wrn16_4.py", list(overrides))


@pytest.fixture
def program():
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[bench]'")
    from scripts.benchmark.peers import torch_recipe

    return torch_recipe


def in_their_module(tensors: dict) -> dict:
    """Returns torchvision's tensors under the names of the peer's module, and without its counters."""
    blocks = sorted(
        {
            name.rsplit(".", 3)[0] if "downsample" in name else name.rsplit(".", 2)[0]
            for name in tensors
            if name.startswith("layer")
        }
    )
    first = 4  # the blocks follow the convolution, norm, ReLU and pooling
    places = {"conv1": "features.0", "bn1": "features.1", "fc": "head"}
    for number, block in enumerate(blocks):
        parts = ("conv1", "bn1", None, "conv2", "bn2")
        for place, part in enumerate(parts):
            places[f"{block}.{part}"] = f"features.{first + number}.layers.{place}"
        places |= {f"{block}.downsample.{i}": f"features.{first + number}.shortcut.{i}" for i in (0, 1)}
    split = {name: name.rsplit(".", 1) for name in tensors if not name.endswith("num_batches_tracked")}
    return {f"{places[layer]}.{tensor}": tensors[name] for name, (layer, tensor) in split.items()}


@pytest.mark.parametrize("zero_init", [True, False])
def test_steps_in_pytorch_are_ours(program, zero_init):
    import torch

    config = recipe_of(
        *("--config.model.width=8", "--config.model.dtype=float32", "--config.model.conv=lax"),
        *("--config.augment.flip=0", "--config.augment.rotation=0", "--config.augment.zoom=0"),
        *(f"--config.model.zero_init={zero_init}", "--config.num_epochs=4"),
    )
    config.augment.crop = None
    # The warm-up begins with a rate of 0 in the first step; the third step is still before the end of the schedule.
    steps_per_epoch, batch, size = 2, 16, 24
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (3, batch, size, size, 1), dtype=np.uint8)
    labels = generator.integers(0, 7, (3, batch)).astype(np.int32)

    mesh = parallel.make_mesh(jax.devices()[:1])
    model = make_model(config.model, num_classes=7)
    preprocessing = Preprocessing((size, size, 1), standardize=True)
    call, create = make_training(config, model, preprocessing, mesh, steps_per_epoch=steps_per_epoch)
    state = parallel.replicate(create(), mesh)
    trainer = program.Trainer(config.to_dict(), steps_per_epoch=steps_per_epoch, device="cpu")
    start = {name: torch.tensor(value) for name, value in in_their_module(to_torch(state.variables)).items()}
    for network in (trainer.network, trainer.average):
        missing = network.load_state_dict(start, strict=False)
        assert not missing.unexpected_keys
        assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)

    for number in range(3):
        parts = {"image": images[number], "label": labels[number], "index": np.arange(batch, dtype=np.int32)}
        batches = parallel.shard_batch(
            {key: part[None] for key, part in parts.items()}, mesh, "shard_map", batch_axis=1
        )
        state, sums = call(state, {}, batches)
        pixels = torch.from_numpy(images[number]).movedim(-1, 1)
        loss = trainer.step(program.preprocess(pixels, is_standardized=True), torch.from_numpy(labels[number]).long())
        assert float(loss) == pytest.approx(float(sums["loss"][0]) / batch, abs=1e-4)
        # PyTorch's running variance is the unbiased one, so it has a larger tolerance.
        for ours, theirs in ((state.variables, trainer.network), (state.ema, trainer.average)):
            values = theirs.state_dict()
            for name, value in in_their_module(to_torch(ours)).items():
                tolerance = 1e-2 if name.endswith("running_var") else 1e-4
                np.testing.assert_allclose(values[name].numpy(), value, atol=tolerance, rtol=tolerance, err_msg=name)
    moved = max(float((values[name] - start[name]).abs().max()) for name in start)
    assert moved > 0.01  # the rates were not all zero


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 2.0, 0.3])
def test_learning_rates_in_pytorch_are_ours_step_by_step(program, schedule, warmup):
    config = recipe_of(f"--config.optimizer.schedule={schedule}", f"--config.optimizer.warmup_epochs={warmup}")
    sizes = {"steps_per_epoch": 7, "num_epochs": config.num_epochs}
    ours = make_schedule(config.optimizer, **sizes)
    theirs = [program.learning_rate(step, config.optimizer.to_dict(), **sizes) for step in range(7 * 40 + 2)]
    np.testing.assert_allclose(theirs, jax.vmap(ours)(jnp.arange(len(theirs))), atol=1e-7)


@pytest.mark.parametrize("crop", [40, None])
def test_equal_draws_change_an_image_as_ours(program, crop):
    import torch

    config = AugmentConfig(flip=0.5, rotation=30.0, zoom=0.3, shift=0.1, crop=crop)
    size, n = crop or 48, 48
    images = standardize(jnp.asarray(np.random.default_rng(0).normal(size=(24, n, n, 1)).astype(np.float32)))
    keys = jax.random.split(jax.random.key(0), len(images))
    ours = jax.vmap(augment, (0, 0, None))(keys, images, config)

    def draws(key):
        """Draws the values that `_sample_affine` and `augment` draw."""
        flip_key, rotation_key, zoom_key, shift_key = jax.random.split(key, 4)
        corner = jnp.zeros(2, jnp.int32)
        if crop:
            corner = jax.random.randint(jax.random.fold_in(key, 4), (3,), 0, jnp.array([n - size, n - size, 0]) + 1)[:2]
        return (
            jax.random.bernoulli(flip_key, config.flip),
            jnp.deg2rad(jax.random.uniform(rotation_key, minval=-config.rotation, maxval=config.rotation)),
            jax.random.uniform(zoom_key, minval=-config.zoom, maxval=config.zoom),
            jax.random.uniform(shift_key, (2,), minval=-config.shift, maxval=config.shift),
            corner,
        )

    same = program.Draws(*(torch.from_numpy(np.array(drawn)) for drawn in jax.vmap(draws)(keys)))
    assert 0 < int(same.mirrored.sum()) < len(images)
    theirs = program.resample(torch.from_numpy(np.array(images)).movedim(-1, 1), same, size)
    np.testing.assert_allclose(theirs.movedim(1, -1).numpy(), ours, atol=1e-3)


def test_draws_in_pytorch_have_our_ranges(program):
    import torch

    config = recipe_of("--config.augment.shift=0.05").augment.to_dict()
    drawn = program.draw(20_000, config, 48, torch.Generator().manual_seed(0))
    assert float(drawn.mirrored.float().mean()) == pytest.approx(0.5, abs=0.02)
    for values, limit in ((drawn.angles, math.radians(10)), (drawn.zooms, 0.1), (drawn.shifts, 0.05)):
        assert float(values.abs().max()) == pytest.approx(limit, rel=0.01)
        # The standard deviation of a uniform distribution.
        assert float(values.std()) == pytest.approx(limit / math.sqrt(3), rel=0.02)
        assert float(values.mean()) == pytest.approx(0, abs=0.02 * limit)
    corners, counts = drawn.corners.unique(return_counts=True)
    assert corners.tolist() == list(range(9))
    assert counts.min() > 0.95 * 40_000 / 9


def test_pytorch_begins_with_weights_of_our_size(program):
    config = recipe_of()
    trainer = program.Trainer(config.to_dict(), steps_per_epoch=1, device="cpu")
    model = make_model(config.model.to_dict() | {"conv": "lax"}, num_classes=7)
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 40, 40, 1)), train=False))()
    theirs = trainer.network.state_dict()
    for name, value in in_their_module(to_torch(variables)).items():
        assert theirs[name].shape == value.shape, name
        # The deviation of the few values of the stem and the head is imprecise.
        assert float(theirs[name].std()) == pytest.approx(value.std(), rel=0.1), name


def test_a_trial_leaves_no_trace_and_the_view_is_the_centre(program):
    import torch

    config = recipe_of("--config.model.width=4", "--config.model.dtype=float32", "--config.num_epochs=4")
    trainer = program.Trainer(config.to_dict(), steps_per_epoch=2, device="cpu")
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 1, 40, 40, generator=generator), torch.arange(8) % 7
    before = [tensor.clone() for tensor in program._tensors(trainer.network)]
    found = program.choose_forward(trainer, lambda: trainer.step(images, labels).item(), "off", calls=2)
    assert found["chosen"] == "eager"
    for old, new in zip(before, program._tensors(trainer.network), strict=True):
        assert torch.equal(old, new)
    losses = [trainer.step(images, labels).item() for _ in range(2)]
    assert losses[0] == losses[1]  # the first step's rate is zero again


def test_pytorch_is_shown_the_centre_of_an_image(program):
    import torch

    config = recipe_of("--config.model.width=4", "--config.preprocessing.standardize=False").to_dict()
    trainer = program.Trainer(config, steps_per_epoch=2, device="cpu")
    # Ones within the crop, and a bright frame of four pixels, which a view that is off by one pixel would include.
    images = torch.full((3, 1, 48, 48), 255, dtype=torch.uint8)
    images[:, :, 4:44, 4:44] = 1

    class Brightness(torch.nn.Module):
        def forward(self, pictures):
            is_dark = (pictures.amax((1, 2, 3)) * 255).round() == 1
            assert pictures.shape[1:] == (1, 40, 40)
            return torch.nn.functional.one_hot(is_dark.long(), 7)

    labels = torch.tensor([1, 1, 0])
    assert trainer.accuracy(Brightness(), images, labels) == pytest.approx(2 / 3)
