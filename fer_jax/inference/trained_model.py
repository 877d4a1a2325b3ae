"""A trained network as an object, on which everything after training is built."""

import dataclasses
import functools
import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_dict

from fer_jax import config as config_lib
from fer_jax import parallel
from fer_jax.errors import UserError
from fer_jax.inference import weights
from fer_jax.inference.preprocessing import Preprocessing, predict_views
from fer_jax.models import conv as conv_lib
from fer_jax.models import resnet
from fer_jax.native import build
from fer_jax.system import accelerators
from fer_jax.workdir import selection
from fer_jax.workdir.paths import Workdir

# The most images in one call; smaller numbers are padded to a power of two, so that few shapes are compiled.
_BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained network: the model and its variables, its inputs, outputs and origin.

    variables: {'params', 'batch_stats'}. class_names: in the order of the logits. config: that of its run.
    step: the training step of its checkpoint. metadata: stored in its checkpoint beside the weights.
    """

    model: resnet.ResNet
    variables: Mapping[str, Any]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    config: config_dict.ConfigDict
    step: int
    metadata: Mapping[str, Any]

    @classmethod
    def load(
        cls, source: str | os.PathLike | Workdir | None, checkpoint: str | None = None, *, mesh: Mesh | None = None
    ) -> "TrainedModel":
        """Loads the network of a run or of a weights file.

        Args:
          source: the workdir of a run, a file that `save` wrote, or, for the packaged file, None or 'pretrained' (see
            `weights.resolve`).
          checkpoint: for a run, 'best' (by validation accuracy; the default), 'latest' or a step.
          mesh: the devices that get the variables; all of them by default.

        Raises:
          UserError: there is no such run, checkpoint or file, it is damaged, or `checkpoint` is given for a file.
        """
        if not isinstance(source, Workdir):
            source = weights.resolve(source)
        # Placed on all devices from the start, so that evaluation needs no second copy.
        sharding = NamedSharding(mesh or parallel.make_mesh(), PartitionSpec())
        # A missing path with the suffix of a weights file is reported as a missing file, not as a missing run.
        if not isinstance(source, Workdir) and (os.path.isfile(source) or str(source).endswith(weights.SUFFIX)):
            # Refused rather than ignored: the one network in the file may not be the requested one.
            if checkpoint is not None:
                raise UserError(f"{source} is a weights file, which holds one network and no checkpoint {checkpoint!r}")
            return cls._load_file(source, sharding)
        # Imported for runs only, because it imports Orbax, which takes a quarter of a second.
        from fer_jax.workdir.checkpoints import Checkpoints, Damaged

        workdir = source if isinstance(source, Workdir) else Workdir(source)
        with workdir.time_limit():
            config = config_lib.load(workdir.config)
        config_lib.check(config)
        with Checkpoints(workdir, read_only=True) as checkpoints:
            step = checkpoints.find(checkpoint or "best")
            try:
                metadata = checkpoints.metadata(step)
                described, abstract = _described(config, metadata, sharding)
                variables = checkpoints.restore_weights(step, abstract, is_ema=uses_ema(config, metadata))
            except Damaged as error:
                others = ", ".join(str(other) for other in checkpoints.steps if other != step) or "none"
                raise UserError(f"{workdir.path}: {error}; other checkpoints: {others}") from None
        trained = cls(variables=variables, config=config, step=step, metadata=metadata, **described)
        with workdir.time_limit():
            view = selection.read_view(workdir, trained.preprocessing.possible_views)
        return trained if view is None else trained.with_view(view)

    @classmethod
    def _load_file(cls, path: str | os.PathLike, sharding: NamedSharding) -> "TrainedModel":
        tensors, metadata = weights.read(path)
        config, _ = stored_description(path, metadata)
        described, abstract = _described(config, metadata, sharding)
        variables = weights.fill(abstract, tensors, source=path)
        return cls(variables=variables, config=config, step=metadata.pop("step"), metadata=metadata, **described)

    def with_view(self, view: str) -> "TrainedModel":
        """Returns the same network with another view of `preprocessing.VIEWS`."""
        return dataclasses.replace(self, preprocessing=dataclasses.replace(self.preprocessing, view=view))

    def save(self, path: str | os.PathLike, *, dtype: str = "float32") -> None:
        """Writes the network to a weights file, which `load` reads on any machine; see `weights.write`.

        dtype: the dtype of the kernels: 'float32', or 'float16' or 'bfloat16' at half the size.
        """
        # Weights files may be shared, so they don't contain this machine's paths, nor the progress of the training.
        kept = {key: value for key, value in self.metadata.items() if key not in ("progress", "dataset_path")}
        config = self.config.to_dict()
        ferplus = config["dataset"]["ferplus"]
        config["dataset"] |= {"path": None, "cache_dir": None, "ferplus": ferplus and os.path.basename(ferplus)}
        config["model"]["init"] = config["model"]["init"] and os.path.basename(config["model"]["init"])
        # The preprocessing has the view that was chosen after training, which isn't in the checkpoint's metadata.
        described = {"config": config, "preprocessing": self.preprocessing.to_metadata()}
        metadata = {**kept, **described, "weights_dtype": dtype, "step": self.step}
        weights.write(path, self.variables, metadata, dtype=dtype)

    def check_images(self, images: np.ndarray) -> np.ndarray:
        """Returns the images as an array; raises UserError if they have another shape or dtype than in training."""
        images = np.asarray(images)
        shape = self.preprocessing.image_shape
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise UserError(
                f"the images are {images.dtype} {list(images.shape)}; this network takes uint8 [n, "
                f"{', '.join(map(str, shape))}]"
            )
        return images

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Returns the logits, float32 [n, classes]; images: uint8 [n, height, width, channels], as in training.

        Raises UserError if the images have another shape or dtype.
        """
        images = self.check_images(images)
        parts = [images[first : first + _BATCH_SIZE] for first in range(0, len(images), _BATCH_SIZE)]
        # Makes the result for no images an empty array rather than an error.
        empty = np.zeros((0, len(self.class_names)), np.float32)
        return np.concatenate([empty, *map(self._logits_of_batch, parts)])

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns the softmax of `logits(images)`, float32 [n, classes]."""
        return np.asarray(jax.nn.softmax(self.logits(images)))

    def _logits_of_batch(self, images: np.ndarray) -> np.ndarray:
        predict, variables = self._compiled
        # At most seven shapes are compiled, whatever the number of images.
        margin = (1 << (len(images) - 1).bit_length()) - len(images)
        padded = np.pad(images, ((0, margin), (0, 0), (0, 0), (0, 0)))
        return np.asarray(predict(variables, padded))[: len(images)]

    @functools.cached_property
    def _compiled(self) -> tuple[Callable, Mapping]:
        # Prepared once per network, not once per call.
        prepare = jax.jit(make_prepare(self.model))
        predict, view = make_predict(self.model, self.preprocessing), self.preprocessing.view
        return jax.jit(lambda variables, images: predict(variables, images)[view]), prepare(self.variables)


def _described(config: config_dict.ConfigDict, metadata: Mapping[str, Any], sharding: NamedSharding):
    """Returns fields of a TrainedModel from a stored network's config and metadata, and its abstract variables."""
    class_names = tuple(metadata["class_names"])
    preprocessing = Preprocessing.from_metadata(metadata["preprocessing"])
    model = make_model(config.model, num_classes=len(class_names))
    abstract = abstract_variables(model, preprocessing.image_shape, sharding)
    return {"model": model, "class_names": class_names, "preprocessing": preprocessing}, abstract


def stored_description(
    path: str | os.PathLike, metadata: Mapping[str, Any]
) -> tuple[config_dict.ConfigDict, Preprocessing]:
    """Returns config and preprocessing of a weights file's metadata; raises UserError if they are invalid."""
    config = config_lib.from_stored(metadata["config"], source=str(path))
    try:
        config_lib.check(config)
        preprocessing = Preprocessing.from_metadata(metadata["preprocessing"])
    except UserError as error:
        raise UserError(f"{path}: {'; '.join(str(error).splitlines())}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: preprocessing of its metadata is {metadata['preprocessing']}, which can't be applied "
            f"({type(error).__name__}: {error})"
        ) from None
    view = (metadata.get("validation") or {}).get("view", preprocessing.view)
    if view not in preprocessing.possible_views:
        raise UserError(
            f"{path}: validation of its metadata has the view {view!r}, which is none of "
            f"{', '.join(preprocessing.possible_views)}"
        )
    return config, preprocessing


def make_model(model_config: Mapping[str, Any], *, num_classes: int) -> resnet.ResNet:
    """Returns the model of a `config.model` for this process's devices."""
    dtype = accelerators.resolve_dtype(model_config["dtype"])
    conv, _ = build.choose(model_config["conv"], dtype=dtype, backend=jax.default_backend())
    model_config = dict(model_config) | {"dtype": dtype, "conv": conv}
    return resnet.make(model_config, num_classes=num_classes, axis_name=parallel.AXIS_NAME)


def make_predict(model: resnet.ResNet, preprocessing: Preprocessing, views: Sequence[str] | None = None) -> Callable:
    """Returns `predict(variables, uint8 images) -> {view: logits}`, with running batch statistics.

    views: names of `preprocessing.VIEWS`; the network's own if None.
    """

    def predict(variables, images):
        network = functools.partial(model.apply, variables, train=False)
        return predict_views(network, images, views or [preprocessing.view], preprocessing)

    return predict


def uses_ema(config: config_dict.ConfigDict, metadata: Mapping[str, Any]) -> bool:
    """Returns whether a checkpoint's weights are the moving average: if it was the better one, or wasn't measured."""
    return (metadata.get("validation") or {}).get("is_ema", config.ema.half_life is not None)


def make_prepare(model: resnet.ResNet) -> Callable:
    """Returns a function of the variables to be applied once, before many calls of `predict` (`resnet.prepare`)."""
    return functools.partial(resnet.prepare, model)


def abstract_variables(model: resnet.ResNet, image_shape: tuple[int, int, int], sharding: NamedSharding) -> dict:
    """Returns the shapes and dtypes of a model's variables, with a sharding."""
    # Only shapes are computed: a random initialisation would take seconds to compile for nothing.
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), variables)


def describe_computation(model: resnet.ResNet) -> dict[str, str]:
    """Returns what determines, besides the weights, the last bits of a model's logits; stored with each checkpoint."""
    device = jax.devices()[0]
    return {
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "dtype": jnp.dtype(model.dtype).name,
        "conv": conv_lib.name_of(model.conv_fn),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "flax": importlib.metadata.version("flax"),
    }
