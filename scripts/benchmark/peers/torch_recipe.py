"""Trains by a recipe of fer_jax in PyTorch: python -m scripts.benchmark.peers.torch_recipe RECIPE.json DATA.npz

RECIPE.json is a config of fer_jax (`config.to_dict()`), DATA.npz has train_images, train_labels, validation_images and
validation_labels: uint8 [N, height, width, 1] and int32 [N]. Network, standardisation, augmentation, loss, optimizer,
learning rate, moving average and view are those of the config; random numbers are PyTorch's own. Each line of standard
output is a JSON object: first the device and how it is used, then one for each epoch. Imports no JAX.

The program does what makes PyTorch fast: the data are on the device from the start, one grid_sample augments the whole
batch, the layout is channels-last, bfloat16 is by autocast, SGD is fused, and the moving average is one call for all
tensors. Known differences from ours: the running variance is unbiased, n / (n - 1) times ours, and the head is computed
in bfloat16.
"""

import argparse
import contextlib
import copy
import json
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from fer_jax.system import accelerators
from scripts.benchmark.peers import NUM_THREADS
from scripts.benchmark.peers.torch_resnet import DEVICE, ResNet

MOMENTUM = 0.9
# As in fer_jax/recipe/images.py: an image of one grey value becomes zeros.
STD_EPSILON = 1e-3
EVALUATION_BATCH = 512
# The options of config.model that the PyTorch network has.
MODEL_KEYS = (
    *("depth", "stages", "width", "stem_kernel", "stem_stride", "stem_pool", "zero_init"),
    *("squeeze_excitation", "stochastic_depth", "dropout"),
)


class Draws(NamedTuple):
    """The random changes to each image of a batch.

    mirrored: bool [batch]. angles: radians, [batch]. zooms: [batch], and shifts, [batch, 2] (rows, columns), both as
    fractions of the size. corners: int [batch, 2], those of the crops (row, column).
    """

    mirrored: torch.Tensor
    angles: torch.Tensor
    zooms: torch.Tensor
    shifts: torch.Tensor
    corners: torch.Tensor


def draw(batch: int, augment: dict, image_size: int, generator: torch.Generator) -> Draws:
    """Draws the changes as `fer_jax.recipe.images.augment` does; augment: a config.augment."""

    def uniform(*shape: int) -> torch.Tensor:
        return 2 * torch.rand(shape, generator=generator, device=generator.device) - 1

    room = image_size - (augment["crop"] or image_size)
    return Draws(
        torch.rand(batch, generator=generator, device=generator.device) < augment["flip"],
        uniform(batch) * math.radians(augment["rotation"]),
        uniform(batch) * augment["zoom"],
        uniform(batch, 2) * augment["shift"],
        torch.randint(0, room + 1, (batch, 2), generator=generator, device=generator.device),
    )


def resample(images: torch.Tensor, draws: Draws, size: int) -> torch.Tensor:
    """Resamples each image bilinearly: float32 [batch, 1, n, n] -> [batch, 1, size, size].

    A crop is rotated and zoomed about its own centre. Pixels outside the image take the nearest border pixel's value.
    """
    n = images.shape[-1]
    scale = 1 / (1 + draws.zooms)
    cos, sin = draws.angles.cos() * scale, draws.angles.sin() * scale
    sign = 1 - 2 * draws.mirrored.float()
    # Maps (row, column) to (row, column) as fer_jax does, in pixels relative to the crop's centre.
    matrix = torch.stack([torch.stack([cos, -sin * sign], -1), torch.stack([sin, cos * sign], -1)], -2)
    shift = matrix @ (draws.shifts * size)[:, :, None]
    centre = (size - 1) / 2 + draws.corners[:, :, None] - shift
    # In affine_grid's coordinates the first pixel's centre is at -1, the last one's at 1, and columns come first.
    theta = torch.cat([matrix * ((size - 1) / (n - 1)), centre * (2 / (n - 1)) - 1], -1).flip(1)
    theta = torch.stack([theta[..., 1], theta[..., 0], theta[..., 2]], -1)
    grid = nn.functional.affine_grid(theta, [len(images), 1, size, size], align_corners=True)
    return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=True)


def preprocess(images: torch.Tensor, *, is_standardized: bool) -> torch.Tensor:
    """Converts uint8 [batch, 1, n, n] to float32 in [0, 1], or standardised image by image."""
    images = images.float() / 255
    if not is_standardized:
        return images
    std, mean = torch.std_mean(images, (1, 2, 3), correction=0, keepdim=True)
    return (images - mean) / (std + STD_EPSILON)


def learning_rate(step: int, optimizer: dict, *, steps_per_epoch: int, num_epochs: int) -> float:
    """Returns the learning rate of a step, counted from 0; optimizer: a config.optimizer."""
    warmup = round(optimizer["warmup_epochs"] * steps_per_epoch)
    if step < warmup:
        return optimizer["learning_rate"] * step / warmup
    done = min(1.0, (step - warmup) / max(1, num_epochs * steps_per_epoch - warmup))
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return optimizer["learning_rate"] * left[optimizer["schedule"]]


class Trainer:
    """A network with its optimizer and moving average; recipe: a config's dict, device: 'cpu' or 'cuda'."""

    def __init__(self, recipe: dict, *, steps_per_epoch: int, device: str = DEVICE):
        torch.manual_seed(recipe["seed"])
        self._recipe, self._steps_per_epoch, self._device = recipe, steps_per_epoch, device
        network = ResNet(**{key: recipe["model"][key] for key in MODEL_KEYS})
        _init_head(network.head)
        self.network = network.to(device, memory_format=torch.channels_last)
        self.forward = self.network
        half_life = recipe["ema"]["half_life"]
        self._decay = half_life and 0.5 ** (1 / (half_life * steps_per_epoch))
        self.average = copy.deepcopy(self.network) if half_life else None
        # Weight decay is for the convolutions and the head, not for scales and biases.
        kernels = [p for p in self.network.parameters() if p.ndim > 1]
        vectors = [p for p in self.network.parameters() if p.ndim == 1]
        groups = [{"params": kernels, "weight_decay": recipe["optimizer"]["weight_decay"]}, {"params": vectors}]
        self._optimizer = torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True, fused=True)
        self._averaged = list(zip(_tensors(self.average), _tensors(self.network), strict=True)) if half_life else []
        self._step = 0

    @contextlib.contextmanager
    def trial(self) -> Iterator[None]:
        """Undoes at its end all steps that were taken in it."""
        modules = [module for module in (self.network, self.average) if module is not None]
        before = copy.deepcopy([module.state_dict() for module in modules])
        optimizer = copy.deepcopy(self._optimizer.state_dict())
        try:
            yield
        finally:
            for module, state in zip(modules, before, strict=True):
                module.load_state_dict(state)
            self._optimizer.load_state_dict(optimizer)
            self._step = 0

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Takes a step on augmented images, float32 [batch, 1, n, n]; returns the mean loss, [], on the device."""
        recipe = self._recipe
        rate = learning_rate(
            self._step,
            recipe["optimizer"],
            steps_per_epoch=self._steps_per_epoch,
            num_epochs=recipe["num_epochs"],
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        with self._autocast():
            logits = self.forward(images.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits, labels, label_smoothing=recipe["loss"]["label_smoothing"])
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._averaged:
            decay = min(self._decay, (1 + self._step) / (10 + self._step))
            averages, values = map(list, zip(*self._averaged, strict=True))
            with torch.no_grad():
                torch._foreach_lerp_(averages, values, 1 - decay)
        self._step += 1
        return loss.detach()

    def accuracy(self, network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Returns the share of uint8 images [N, 1, n, n] that are classified correctly, in the recipe's one view."""
        recipe, correct = self._recipe, 0
        size, n = recipe["augment"]["crop"] or images.shape[-1], images.shape[-1]
        if recipe["evaluation"]["view"] == "whole":
            size = n
        corner = (n - size) // 2
        network.eval()
        with torch.inference_mode(), self._autocast():
            for part, wanted in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
                part = preprocess(part, is_standardized=recipe["preprocessing"]["standardize"])
                part = part[..., corner : corner + size, corner : corner + size]
                part = part.contiguous(memory_format=torch.channels_last)
                correct += int((network(part).argmax(-1) == wanted).sum())
        return correct / len(labels)

    def _autocast(self):
        return torch.autocast(self._device, torch.bfloat16, enabled=dtype_of(self._recipe) == "bfloat16")


def dtype_of(recipe: dict) -> str:
    """Returns the dtype of the computation; auto is resolved as in fer_jax, but without JAX."""
    if recipe["model"]["dtype"] != "auto":
        return recipe["model"]["dtype"]
    return "bfloat16" if DEVICE == "cuda" or accelerators.has_bfloat16() else "float32"


def _init_head(head: nn.Linear) -> None:
    # As Flax initialises dense layers: LeCun normal, with a factor that makes up for the cut-off at two deviations.
    std = head.in_features**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(head.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(head.bias)


def _tensors(network: nn.Module) -> list[torch.Tensor]:
    """Returns the parameters, detached, and the running statistics, but not the norms' counters."""
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    return [parameter.detach() for parameter in network.parameters()] + buffers


def choose_forward(trainer: Trainer, take_step, how: str, *, calls: int = 8) -> dict:
    """Sets trainer.forward to the network, eager or compiled, and returns the choice and the seconds of a step.

    how: 'on', 'off', or 'auto' for the faster one by the median of `calls` steps; take_step: takes a step and waits.
    Afterwards all that needs compiling is compiled, and the trainer's state is as before.
    """
    ways = {"eager": trainer.network, "compiled": torch.compile(trainer.network)}
    ways = {name: ways[name] for name in {"on": ["compiled"], "off": ["eager"], "auto": list(ways)}[how]}
    found = {}
    with trainer.trial():
        for name, forward in ways.items():
            trainer.forward, seconds = forward, []
            try:
                for _ in range(calls + 2):
                    started = time.perf_counter()
                    take_step()
                    seconds.append(time.perf_counter() - started)
            except Exception as error:
                # torch.compile needs a compiler, which may be missing; the eager network works without.
                if how == "on":
                    raise
                found["not_compiled"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:300]
                continue
            found[name] = statistics.median(seconds[2:])
    chosen = min((name for name in ways if name in found), key=found.get)
    trainer.forward = ways[chosen]
    return {"chosen": chosen, "step_seconds": found}


def train(recipe: dict, data: dict, *, how: str, say) -> None:
    """Trains; how: see `choose_forward`; say: is called with the dict of each line of output."""
    torch.set_num_threads(NUM_THREADS)
    # Matrix products stay in float32: TF32 would round affine_grid's coordinates to a tenth of a pixel.
    torch.backends.cudnn.benchmark = True
    tensors = {key: torch.from_numpy(value).to(DEVICE) for key, value in data.items()}
    images, labels, validation_images, validation_labels = (
        tensors[f"{split}_{key}"].movedim(-1, 1) if key == "images" else tensors[f"{split}_{key}"].long()
        for split in ("train", "validation")
        for key in ("images", "labels")
    )
    batch, augment = recipe["batch_size"], recipe["augment"]
    steps_per_epoch = len(labels) // batch
    size = augment["crop"] or images.shape[-1]
    generator = torch.Generator(DEVICE).manual_seed(recipe["seed"])
    trainer = Trainer(recipe, steps_per_epoch=steps_per_epoch)

    def take_step(index: torch.Tensor) -> torch.Tensor:
        chosen = preprocess(images[index], is_standardized=recipe["preprocessing"]["standardize"])
        return trainer.step(resample(chosen, draw(batch, augment, images.shape[-1], generator), size), labels[index])

    started = time.perf_counter()
    first = torch.arange(batch, device=DEVICE)
    found = choose_forward(trainer, lambda: take_step(first).item(), how)
    say(
        {"torch": torch.__version__, "device": _device_name(), "dtype": dtype_of(recipe), **found}
        | {"warm_up_seconds": time.perf_counter() - started}
    )
    for epoch in range(1, recipe["num_epochs"] + 1):
        total = torch.zeros((), device=DEVICE)
        started = time.perf_counter()
        order = torch.randperm(len(labels), generator=generator, device=DEVICE)
        for number in range(steps_per_epoch):
            total += take_step(order[number * batch : (number + 1) * batch])
        loss = total.item() / steps_per_epoch  # item() waits for the device
        seconds = time.perf_counter() - started
        networks = {"validation": trainer.network, "validation_ema": trainer.average}
        accuracy = {
            kind: trainer.accuracy(network, validation_images, validation_labels)
            for kind, network in networks.items()
            if network is not None
        }
        say({"epoch": epoch, "seconds": seconds, "loss": loss, "accuracy": accuracy})


def _device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="torch.compile; auto: faster")
    arguments = parser.parse_args(argv)
    # PyTorch's own output goes to standard error; standard output is for answers only.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with np.load(arguments.data) as data:
        arrays = dict(data)
    train(
        json.loads(arguments.recipe.read_text()),
        arrays,
        how=arguments.compile,
        say=lambda said: print(json.dumps(said), file=answers, flush=True),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
