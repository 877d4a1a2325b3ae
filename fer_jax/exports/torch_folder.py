"""Folders for PyTorch: a network under torchvision's names, and a README.md on how to load and use it."""

import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import safetensors
import safetensors.numpy

from fer_jax.errors import UserError, naming
from fer_jax.inference import torch_names
from fer_jax.inference.preprocessing import VIEWS, Preprocessing, predict_views
from fer_jax.inference.trained_model import TrainedModel
from fer_jax.models.resnet import ResNet

_FILE = "model.safetensors"


def write(trained: TrainedModel, path: pathlib.Path, *, dtype: str) -> None:
    """Writes model.safetensors, float32, and README.md to a new folder.

    Raises UserError if the network has squeeze-and-excitation, which torchvision's ResNets lack, and OSError or
    StorageError if the files can't be written.
    """
    if trained.model.squeeze_excitation:
        raise UserError(
            "--format=torch names tensors as torchvision does, whose ResNets have no squeeze-and-excitation; this "
            "network has it (config.model.squeeze_excitation)"
        )
    preprocessing = trained.preprocessing.to_metadata()
    names = ("bottleneck", "num_classes", "width", "stem_kernel", "stem_stride", "stem_pool")
    architecture = {name: getattr(trained.model, name) for name in names}
    architecture |= {"stage_sizes": list(trained.model.stage_sizes), "channels": preprocessing["image_shape"][2]}
    metadata = {
        "format": "pt",
        "architecture": json.dumps(architecture),
        "class_names": json.dumps(trained.class_names),
        "preprocessing": json.dumps(preprocessing),
    }
    content = safetensors.numpy.save(torch_names.to_torch(trained.variables), metadata=metadata)
    # Created only now, so that a refused network leaves no folder.
    path.mkdir()
    with naming(path / _FILE):
        (path / _FILE).write_bytes(content)
    with naming(path / "README.md"):
        (path / "README.md").write_text(_describe(trained))


def read(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `predict(uint8 images) -> probabilities`, float32 [batch, classes], by torchvision, as in README.md."""
    import safetensors.torch
    import torch

    with safetensors.safe_open(path / _FILE, framework="numpy") as file:
        metadata = {key: json.loads(file.metadata()[key]) for key in ("preprocessing", "architecture")}
    preprocessing = Preprocessing.from_metadata(metadata["preprocessing"])
    model = _build(**metadata["architecture"])
    model.load_state_dict(safetensors.torch.load_file(path / _FILE))
    model.eval()

    def network(pictures):
        # Copied, because PyTorch doesn't support read-only arrays.
        batch = torch.from_numpy(np.array(pictures).transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            return model(batch).numpy()

    def predict(images):
        logits = predict_views(network, images, [preprocessing.view], preprocessing)[preprocessing.view]
        return np.asarray(jax.nn.softmax(logits))

    return predict


def _build(*, bottleneck, stage_sizes, num_classes, width, stem_kernel, stem_stride, stem_pool, channels):
    """Returns torchvision's ResNet of that architecture, built by the steps that `loading_code` returns."""
    import torch
    from torchvision.models import resnet

    block = resnet.Bottleneck if bottleneck else resnet.BasicBlock
    model = resnet.ResNet(block, stage_sizes + [1] * (4 - len(stage_sizes)), num_classes=num_classes)
    model.conv1 = torch.nn.Conv2d(channels, width, stem_kernel, stem_stride, stem_kernel // 2, bias=False)
    if not stem_pool:
        model.maxpool = torch.nn.Identity()
    if width != 64:
        model.bn1, model.inplanes = torch.nn.BatchNorm2d(width), width
        for stage, size in enumerate(stage_sizes):
            layer = model._make_layer(block, width << stage, size, 1 if stage == 0 else 2)
            setattr(model, f"layer{stage + 1}", layer)
    for stage in range(len(stage_sizes) + 1, 5):
        setattr(model, f"layer{stage}", torch.nn.Identity())
    if width != 64 or len(stage_sizes) < 4:
        model.fc = torch.nn.Linear((width << len(stage_sizes) - 1) * (4 if bottleneck else 1), num_classes)
    return model


def loading_code(model: ResNet, channels: int) -> str:
    """Returns Python code that builds torchvision's ResNet of the model's architecture and loads the weights.

    channels: the number of channels of the images.
    """
    block = "Bottleneck" if model.bottleneck else "BasicBlock"
    sizes, width, kernel = list(model.stage_sizes), model.width, model.stem_kernel
    # torchvision's ResNet has four stages, 64 channels and a stem of 7/2/pool; layers that differ are replaced.
    lines = [
        "import safetensors.torch",
        "import torch",
        f"from torchvision.models.resnet import {block}, ResNet",
        "",
        f"model = ResNet({block}, {sizes + [1] * (4 - len(sizes))}, num_classes={model.num_classes})",
        f"model.conv1 = torch.nn.Conv2d({channels}, {width}, {kernel}, {model.stem_stride}, {kernel // 2}, bias=False)",
    ]
    if not model.stem_pool:
        lines.append("model.maxpool = torch.nn.Identity()")
    # _make_layer reads the number of input channels from `inplanes` and writes its own there.
    if width != 64:
        lines += [f"model.bn1 = torch.nn.BatchNorm2d({width})", f"model.inplanes = {width}"]
        for stage, size in enumerate(sizes):
            stride = 1 if stage == 0 else 2
            lines.append(f"model.layer{stage + 1} = model._make_layer({block}, {width << stage}, {size}, {stride})")
    lines += [f"model.layer{stage} = torch.nn.Identity()" for stage in range(len(sizes) + 1, 5)]
    if width != 64 or len(sizes) < 4:
        features = (width << len(sizes) - 1) * (4 if model.bottleneck else 1)
        lines.append(f"model.fc = torch.nn.Linear({features}, {model.num_classes})")
    lines += [f'model.load_state_dict(safetensors.torch.load_file("{_FILE}"))', "model.eval()"]
    return "\n".join(lines) + "\n"


def _describe(trained: TrainedModel) -> str:
    """Returns the text of README.md."""
    preprocessing = trained.preprocessing
    height, width, channels = preprocessing.image_shape
    steps = [f"pixels as float32, divided by {preprocessing.divisor:g}"]
    if preprocessing.standardize:
        steps.append("of each image its mean subtracted, and the rest divided by its standard deviation plus 0.001")
    if VIEWS[preprocessing.view].is_cropped:
        steps.append(f"the {preprocessing.crop}x{preprocessing.crop} centre cut out")
    if VIEWS[preprocessing.view].count > 1:
        steps.append(f"best as the mean of the probabilities of the view {preprocessing.view!r} of fer_jax")
    licence = trained.metadata.get("licence")
    return (
        f"""# A facial-expression classifier

{_FILE} holds a ResNet under torchvision's names.

```python
{loading_code(trained.model, channels)}```

- Takes float32 [batch, {channels}, {height}, {width}] of faces: {"; ".join(steps)}.
- Returns logits of {", ".join(trained.class_names)}, in this order.
{f"- Licence: {licence}" if licence else ""}
""".rstrip("\n")
        + "\n"
    )
