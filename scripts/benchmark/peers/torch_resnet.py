"""ResNet v1.5 in PyTorch, on a GPU if there is one: channels-last, fused Adam, eager or compiled, autocast or not."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fer_jax.data.dataset import CLASS_NAMES
from scripts.benchmark.peers import ARCHITECTURES, NUM_THREADS, make_batch

PACKAGES = ("torch",)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        hidden = max(8, channels // 16)
        self.factors = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x):
        return x * self.factors(x.mean((2, 3)))[:, :, None, None]


class StochasticDepth(nn.Module):
    """Drops whole images in training, at `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training:
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)


class Block(nn.Module):
    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        *,
        bottleneck: bool,
        zero_init: bool = False,
        squeeze_excitation: bool = False,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        convs = [(inputs, width, 3, stride), (width, width, 3)]
        if bottleneck:
            convs = [(inputs, width, 1), (width, width, 3, stride), (width, outputs, 1)]
        layers = [layer for conv in convs for layer in (*conv_norm(*conv), nn.ReLU(inplace=True))]
        layers.pop()
        if zero_init:
            nn.init.zeros_(layers[-1].weight)
        layers += [SqueezeExcitation(outputs)] if squeeze_excitation else []
        layers += [StochasticDepth(drop_rate)] if drop_rate else []
        self.layers = nn.Sequential(*layers)
        shape_changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Sequential(*conv_norm(inputs, outputs, 1, stride)) if shape_changes else nn.Identity()

    def forward(self, x):
        return torch.relu(self.layers(x) + self.shortcut(x))


class ResNet(nn.Module):
    """Maps uint8 [batch, 1, height, width], or float32, which isn't scaled, to logits, float32 [batch, 7]."""

    def __init__(
        self,
        *,
        depth: int,
        stages: int,
        width: int,
        stem_kernel: int,
        stem_stride: int,
        stem_pool: bool,
        zero_init: bool = False,
        squeeze_excitation: bool = False,
        stochastic_depth: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        stage_sizes, bottleneck = ARCHITECTURES[depth]
        layers = [*conv_norm(1, width, stem_kernel, stem_stride), nn.ReLU(inplace=True)]
        if stem_pool:
            layers.append(nn.MaxPool2d(3, 2, padding=1))
        inputs, number, last = width, 0, max(1, sum(stage_sizes[:stages]) - 1)
        for stage, num_blocks in enumerate(stage_sizes[:stages]):
            for first in [True] + [False] * (num_blocks - 1):
                stride = 2 if stage and first else 1
                block = Block(
                    inputs,
                    width * 2**stage,
                    stride,
                    bottleneck=bottleneck,
                    zero_init=zero_init,
                    squeeze_excitation=squeeze_excitation,
                    drop_rate=stochastic_depth * number / last,
                )
                layers.append(block)
                inputs, number = width * 2**stage * (4 if bottleneck else 1), number + 1
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(inputs, len(CLASS_NAMES))

    def forward(self, images):
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return self.head(self.dropout(self.features(images).mean((2, 3)))).float()


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(outputs)


def make_network(spec: dict) -> tuple[ResNet, torch.Tensor, torch.Tensor, int]:
    """Returns the network, a batch of images and labels, and the number of parameters; spec: see `make`."""
    torch.set_num_threads(NUM_THREADS)
    images, labels = make_batch(spec["batch"], spec["image_size"])
    network = ResNet(**spec["net"]).to(memory_format=torch.channels_last)
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    return network, images, torch.from_numpy(labels).long(), sum(p.numel() for p in network.parameters())


def make(spec: dict) -> tuple[Callable[[], Any], int]:
    """Returns a function that starts the work once and returns its result, and the network's number of parameters.

    spec: {task: 'step' or 'inference', batch, image_size, net: of NETS, dtype, compile}, and optionally platform, the
    one that JAX uses. Raises RuntimeError if PyTorch's is another.
    """
    platform = "gpu" if DEVICE == "cuda" else DEVICE
    if spec.get("platform", platform) != platform:
        raise RuntimeError(f"this PyTorch computes on {platform}, and JAX on {spec['platform']}")
    network, images, labels, num_parameters = make_network(spec)
    network, labels = network.to(DEVICE), labels.to(DEVICE)
    if DEVICE == "cuda":
        # As JAX does by default: autotuning of cuDNN's algorithms, and TF32 for products of float32.
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    autocast = torch.autocast(DEVICE, torch.bfloat16, enabled=spec["dtype"] == "bfloat16")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    resident = images.to(DEVICE)

    def step():
        with autocast:
            loss = nn.functional.cross_entropy(network(resident), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def infer():
        with torch.inference_mode(), autocast:
            return network(images.to(DEVICE)).cpu().numpy()

    if spec["task"] == "inference":
        network.eval()
    if spec["compile"]:
        # Freezing folds the batch norms and lays the weights out for oneDNN; it is for inference alone.
        network.compile(options={"freezing": spec["task"] == "inference" and DEVICE == "cpu"})
    return {"step": step, "inference": infer}[spec["task"]], num_parameters


def wait(result) -> None:
    """Waits until the device has completed all work."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak_memory() -> int | None:
    """Returns the peak memory of tensors on the GPU, in bytes; None without a GPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None
