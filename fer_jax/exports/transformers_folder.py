"""Folders that `transformers.AutoModelForImageClassification.from_pretrained` loads.

The ResNet of transformers (https://github.com/huggingface/transformers, models/resnet) is the same ResNet v1.5 under
other names. It supports only a stem of 7x7, stride 2 and pooling, and takes RGB images. For a network of grey images
the first kernel gets three channels, the old kernel times the weights that convert RGB to grey, so that it takes RGB.
"""

import json
import pathlib
import re
from collections.abc import Callable

import numpy as np
import safetensors.numpy

from fer_jax.errors import UserError, naming
from fer_jax.inference import torch_names
from fer_jax.inference.preprocessing import VIEWS, Preprocessing
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.models.resnet import ResNet

# The weights of ITU-R 601, with which Pillow and fer_jax's readers convert RGB to grey.
_LUMA = np.float32([0.299, 0.587, 0.114])


def write(trained: TrainedModel, path: pathlib.Path, *, dtype: str) -> None:
    """Writes config.json, preprocessor_config.json and model.safetensors, float32, to a new folder.

    Raises UserError if transformers doesn't support the network or its preprocessing, and OSError or StorageError if
    the files can't be written.
    """
    _refuse_others(trained)
    tensors = {_name(name): tensor for name, tensor in torch_names.to_torch(trained.variables).items()}
    if trained.preprocessing.image_shape[2] == 1:
        first = "resnet.embedder.embedder.convolution.weight"
        tensors[first] = tensors[first] * _LUMA[:, None, None]
    path.mkdir()
    files = {
        "config.json": _as_json(_config(trained.model, trained.class_names)),
        "preprocessor_config.json": _as_json(_processor(trained.preprocessing)),
        "model.safetensors": safetensors.numpy.save(tensors, metadata={"format": "pt"}),
    }
    for name, content in files.items():
        with naming(path / name):
            (path / name).write_bytes(content)


def read(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `predict(uint8 images) -> probabilities`, float32 [batch, classes], by transformers and its processor."""
    import torch
    import transformers
    from PIL import Image

    transformers.logging.disable_progress_bar()
    processor = transformers.AutoImageProcessor.from_pretrained(path)
    model = transformers.AutoModelForImageClassification.from_pretrained(path).eval()

    def predict(images):
        pictures = [Image.fromarray(np.ascontiguousarray(np.broadcast_to(i, (*i.shape[:2], 3)))) for i in images]
        # The processor doesn't accept an empty list.
        if not pictures:
            return np.zeros((0, model.config.num_labels), np.float32)
        with torch.no_grad():
            return model(**processor(pictures, return_tensors="pt")).logits.softmax(-1).numpy()

    return predict


def _refuse_others(trained: TrainedModel) -> None:
    model = trained.model
    stem = f"{model.stem_kernel}/{model.stem_stride}/{'pool' if model.stem_pool else 'none'}"
    standardizes = trained.preprocessing.standardize
    reasons = {
        f"its stem is {stem}, and theirs 7/2/pool (kernel, stride, pooling)": stem != "7/2/pool",
        "theirs has no squeeze-and-excitation": model.squeeze_excitation,
        "theirs can't be shown standardised images (config.preprocessing.standardize)": standardizes,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"--format=transformers can't hold this network: {reason}; --format=onnx can")


def _name(name: str) -> str:
    """Returns the name in transformers of the tensor that torchvision calls `name`."""
    name = re.sub(r"^layer(\d+)\.(\d+)", lambda m: f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}", name)
    name = re.sub(r"^fc\.", "classifier.1.", name)
    name = re.sub(r"downsample\.0", "shortcut.convolution", name)
    name = re.sub(r"downsample\.1", "shortcut.normalization", name)
    if re.match(r"(conv|bn)1\.", name):
        name = f"resnet.embedder.embedder.{re.sub(r'1', '', name, count=1)}"
    else:
        name = re.sub(r"\b(conv|bn)(\d+)", lambda m: f"layer.{int(m[2]) - 1}.{m[1]}", name)
    return re.sub(r"\bbn\.", "normalization.", re.sub(r"\bconv\.", "convolution.", name))


def _config(model: ResNet, class_names: tuple[str, ...]) -> dict:
    expansion = 4 if model.bottleneck else 1
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": model.width,
        "hidden_sizes": [expansion * (model.width << stage) for stage in range(len(model.stage_sizes))],
        "depths": list(model.stage_sizes),
        "layer_type": "bottleneck" if model.bottleneck else "basic",
        "hidden_act": "relu",
        # ResNet v1.5, and a first stage that keeps the stem's resolution.
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "id2label": {str(number): name for number, name in enumerate(class_names)},
        "label2id": {name: number for number, name in enumerate(class_names)},
        "torch_dtype": "float32",
    }


def _processor(preprocessing: Preprocessing) -> dict:
    height, width, _ = preprocessing.image_shape
    is_cropped = VIEWS[preprocessing.view].is_cropped
    return {
        # One of the image processors of transformers that crop.
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        # Pictures of any size are resized. Square ones are resized as by fer_jax's readers; others are squashed, while
        # the readers cut out the largest centred square.
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,  # bilinear
        "do_center_crop": is_cropped,
        "crop_size": {"height": preprocessing.crop or height, "width": preprocessing.crop or width},
        "do_rescale": True,
        "rescale_factor": 1 / preprocessing.divisor,
        "do_normalize": False,
    }


def _as_json(document: dict) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
