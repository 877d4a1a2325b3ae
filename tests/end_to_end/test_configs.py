"""The experiments of configs/ are valid, and small networks train with their recipes."""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fer_jax import config as config_lib
from fer_jax import parallel
from fer_jax.inference.preprocessing import make_preprocessing
from fer_jax.loop.initial import read_initial
from fer_jax.loop.program import make_training
from fer_jax.models import resnet
from fer_jax.models.flops import training_flops
from fer_jax.recipe.state import num_parameters
from fer_jax.system.terminal import Terminal
from tests.end_to_end.conftest import read_metrics
from tests.support.tiny_run import TINY

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


def read(path: pathlib.Path):
    return runpy.run_path(str(path))["get_config"]()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_holds_values_that_go_together_and_says_its_command(path):
    config_lib.check(read(path))
    assert f"--config=configs/{path.name}" in path.read_text()


@pytest.mark.parametrize("name", ["wrn16_4", "resnet34_gpu"])
def test_a_recipe_trains_a_small_network(name, csv_file, run, tmp_path):
    config = read(next(path for path in CONFIGS if path.stem == name))
    small = TINY | {"batch_size": 8}
    data = {"dataset.path": str(csv_file), "dataset.cache_dir": str(csv_file.parent / "prepared")}
    # These are 50 steps, of which the last five are without mixing.
    short = {"num_epochs": 10, "optimizer.warmup_epochs": 0.5, "mix.off_epochs": 1 if config.mix.off_epochs else 0}
    config.update_from_flattened_dict(small | data | short)
    assert run(config, tmp_path / "run") == 0
    assert read_metrics(tmp_path / "run")[-1]["step"] == 50
    evaluation = json.loads((tmp_path / "run" / "report" / "evaluation_test.json").read_text())
    assert set(evaluation["views"]) == {"centre_crop", "whole", "whole_mirrored", "ten_crops"}


def test_the_recipe_for_a_gpu_is_of_the_size_that_it_says_and_lowers_for_one():
    config = read(next(path for path in CONFIGS if path.stem == "resnet34_gpu"))
    model = resnet.make(
        dict(config.model) | {"dtype": "bfloat16", "conv": "lax"},
        num_classes=7,
        axis_name=parallel.AXIS_NAME,
    )
    assert training_flops(model, (44, 44, 1)) == pytest.approx(31e9, rel=0.02)
    mesh = parallel.make_mesh()
    preprocessing = make_preprocessing(config, (48, 48, 1))
    train_call, create = make_training(config, model, preprocessing, mesh, steps_per_epoch=112)
    sharding = NamedSharding(mesh, PartitionSpec())
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(create))
    assert num_parameters(state.params) == pytest.approx(47.9e6, rel=0.02)
    # The whole split is on the device, so the batches of a call of eight steps are 8 x 256 indices.
    assert (config.dataset.loader, config.train.steps_per_call, config.batch_size) == ("device", 8, 256)
    data = {"image": np.zeros((1000, 48, 48, 1), np.uint8), "label": np.zeros(1000, np.int32)}
    batches = parallel.shard_batch({"index": np.zeros((8, 256), np.int32)}, mesh, "shard_map", batch_axis=1)
    lowered = train_call.trace(state, parallel.replicate(data, mesh), batches).lower(lowering_platforms=("cuda",))
    assert "convolution" in lowered.as_text()
    assert jnp.dtype(model.dtype) == jnp.bfloat16


def test_the_experiment_on_a_folder_starts_from_all_of_the_packaged_network_but_its_head(capsys):
    config = read(next(path for path in CONFIGS if path.stem == "finetune"))
    assert (config.dataset.classes, config.dataset.resize, config.optimizer.learning_rate) == ("folders", True, 0.01)
    model = resnet.make(
        dict(config.model) | {"dtype": "float32", "conv": "lax"},
        num_classes=3,
        axis_name=parallel.AXIS_NAME,
    )
    preprocessing = make_preprocessing(config, (48, 48, 1))
    _, create = make_training(config, model, preprocessing, parallel.make_mesh(), steps_per_epoch=4)
    state = jax.eval_shape(create)
    metadata = {"class_names": ["negative", "other", "positive"], "preprocessing": preprocessing.to_metadata()}
    initial = read_initial(config, metadata, state, Terminal(is_primary=True))
    assert state.params.keys() - initial["params"].keys() == {"head"}
    assert initial["batch_stats"].keys() == state.batch_stats.keys()
    assert "fer2013.safetensors: all but the head (7 classes there, 3 here)." in capsys.readouterr().out
