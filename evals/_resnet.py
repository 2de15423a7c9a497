"""The CIFAR ResNet of He et al. 2016 (arXiv 1512.03385, section 4.2), and classifiers of it read from a file.

Three stages of n blocks, widths 16, 32 and 64; where the width grows the shortcut takes every second pixel and adds
channels of zeros (option A). A stronger stand-in than the one trained here, for images of CIFAR's form.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.method import DataSpec

# Shapes: B images, C channels in, D channels out, H = W image side, K classes.

WIDTHS = (16, 32, 64)
SIDE = 32  # px of CIFAR's images
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the inputs in [0, 1] that the weights were trained with
FORM = "a .safetensors file of a CIFAR ResNet: conv1, bn1, layer1 to layer3 of n blocks, linear"


class ResNet(nn.Module):
    """6n + 2 layers; features are the mean over places of the last stage's output."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        stages = zip((WIDTHS[0], *WIDTHS), WIDTHS, (1, 2, 2), strict=False)
        self.layer1, self.layer2, self.layer3 = (_stage(blocks, *stage) for stage in stages)
        self.linear = nn.Linear(WIDTHS[-1], classes)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """[B, 64] of `images` uint8 [B, 3, 32, 32]."""
        x = (images.float() / 255 - self.mean) / self.std
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))

    def logits(self, features: Tensor) -> Tensor:
        return self.linear(features)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.grow = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, H] to [B, D, H / stride, H / stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        half = self.grow // 2
        return F.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.grow - half)))


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def load(path: Path) -> tuple[ResNet, str]:
    """The network in a file, ready to be asked, and its name: its depth and the first digits of the file's checksum.

    Raises HarnessError for a file that holds no such network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as read

    if not path.is_file():
        raise HarnessError(f"no stand-in classifier at {path}", FORM)
    content = path.read_bytes()
    try:
        state = read(content)
    except SafetensorError as error:
        raise HarnessError(f"{path} cannot be read: {error}", FORM) from error
    blocks = {int(found[1]) for key in state if (found := re.match(r"layer1\.(\d+)\.", key))}
    head = state.get("linear.weight")
    if not blocks or head is None or head.ndim != 2:
        raise HarnessError(f"{path} holds no CIFAR ResNet: its tensors are {', '.join(sorted(state)[:3])} ...", FORM)
    with torch.random.fork_rng(devices=[]):
        net = ResNet(1 + max(blocks), len(head))
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:30])
        raise HarnessError(f"{path} holds no CIFAR ResNet: {reason}", FORM) from error
    depth, checksum = 6 * (1 + max(blocks)) + 2, hashlib.sha256(content).hexdigest()
    return net.eval().requires_grad_(False), f"resnet{depth}-{checksum[:4]}"


def require_fits(name: str, data: DataSpec) -> None:
    """Raise HarnessError for a data set whose images are not of CIFAR's form."""
    if (data.channels, data.size) != (3, SIDE):
        raise HarnessError(
            f"the stand-in {name} for {data.name}, images of {data.channels} channel(s) and {data.size} px",
            f"colour images of {SIDE} px, as the network was trained on",
            "leave it out of generation.extractors; cnn64 is trained on any data set",
        )
