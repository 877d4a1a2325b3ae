"""ResNet v1.5 in PyTorch on CPU: channels-last, fused Adam; eager or compiled, float32 or bfloat16 autocast."""

from collections.abc import Callable

import torch
from torch import nn

from fer_jax.data.dataset import CLASS_NAMES
from scripts.benchmark.peers import ARCHITECTURES, NUM_THREADS, make_batch

PACKAGES = ("torch",)


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, *, bottleneck: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        convs = [(inputs, width, 3, stride), (width, width, 3)]
        if bottleneck:
            convs = [(inputs, width, 1), (width, width, 3, stride), (width, outputs, 1)]
        layers = [layer for conv in convs for layer in (*conv_norm(*conv), nn.ReLU(inplace=True))]
        self.layers = nn.Sequential(*layers[:-1])
        shape_changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Sequential(*conv_norm(inputs, outputs, 1, stride)) if shape_changes else nn.Identity()

    def forward(self, x):
        return torch.relu(self.layers(x) + self.shortcut(x))


class ResNet(nn.Module):
    """uint8 [batch, 1, height, width] -> logits float32 [batch, 7]."""

    def __init__(self, *, depth: int, stages: int, width: int, stem_kernel: int, stem_stride: int, stem_pool: bool):
        super().__init__()
        stage_sizes, bottleneck = ARCHITECTURES[depth]
        layers = [*conv_norm(1, width, stem_kernel, stem_stride), nn.ReLU(inplace=True)]
        if stem_pool:
            layers.append(nn.MaxPool2d(3, 2, padding=1))
        inputs = width
        for stage, num_blocks in enumerate(stage_sizes[:stages]):
            for block in range(num_blocks):
                stride = 2 if stage and not block else 1
                layers.append(Block(inputs, width * 2**stage, stride, bottleneck=bottleneck))
                inputs = width * 2**stage * (4 if bottleneck else 1)
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, len(CLASS_NAMES))

    def forward(self, images):
        return self.head(self.features(images.float() / 255).mean((2, 3))).float()


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


def make(spec: dict) -> tuple[Callable[[], None], int]:
    """Returns a function that does the work once and waits for it, and the network's number of parameters.

    spec: {task: 'step' or 'inference', batch, image_size, net: of NETS, dtype, compile}.
    """
    network, images, labels, num_parameters = make_network(spec)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=spec["dtype"] == "bfloat16")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)

    def loss_fn():
        return nn.functional.cross_entropy(network(images), labels)

    def step() -> None:
        with autocast:
            loss = loss_fn()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    def infer() -> None:
        with torch.inference_mode(), autocast:
            network(images).numpy()

    if spec["task"] == "inference":
        network.eval()
    if spec["compile"]:
        # Freezing folds the batch norms and lays the weights out for oneDNN; it is for inference alone.
        network.compile(options={"freezing": spec["task"] == "inference"})
    return {"step": step, "inference": infer}[spec["task"]], num_parameters
