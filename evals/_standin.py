"""A small classifier that stands in for Inception where its weights cannot be had.

Frechet distances need features that tell images apart. This one is trained on the real training set with a fixed
seed, and cached with its training accuracy. Its distances mean something
only beside others of the same network, so columns carry its name and the first digits of its weights' checksum: two
machines round differently, train different networks, and must not share a column.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from evals._weights import STAND_IN
from harness.errors import HarnessError
from harness.files import write_atomic
from harness.rng import Rng

if TYPE_CHECKING:
    from harness.data.dataset import Dataset

# Shapes: B images, C channels, H height, W width, K classes.

VERSION = 1  # a change below makes another network: raise VERSION
WIDTH = 64  # features; narrow, because the distance's bias grows with the width (card evaluation, section 7.3)
BATCH, LR = 128, 4e-3
EPOCHS, FEWEST, MOST = 20, 200, 600  # epochs, but neither fewer nor more steps than this
SEED = 20_26


class Classifier(nn.Module):
    """Four convolutions and a linear layer; features are the mean over places of the last one's output.

    Larger images are averaged down to at most 32 to 63 px first: this net is a yardstick, not a contestant.
    """

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.shrink = nn.AvgPool2d(max(1, size // 32))
        self.body = nn.Sequential(
            *_layer(channels, 16, stride=1 if size < 16 else 2),
            *_layer(16, 32, stride=1),
            *_layer(32, WIDTH, stride=2),
            *_layer(WIDTH, WIDTH, stride=1),
        )
        self.head = nn.Linear(WIDTH, classes)

    def features(self, images: Tensor) -> Tensor:
        """[B, 64] of `images` uint8 [B, C, H, W]."""
        x = self.shrink(images.to(self.head.weight.dtype) / 127.5 - 1)
        return self.body(x).mean(dim=(2, 3))

    def logits(self, features: Tensor) -> Tensor:
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.features(images))


def _layer(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class StandIn(NamedTuple):
    """A trained stand-in on disk."""

    path: Path
    checksum: str  # sha256 of the file
    accuracy: float  # top-1 % on train

    @property
    def name(self) -> str:
        return f"{STAND_IN}-{self.checksum[:4]}"


def stand_in(data: Dataset, cache: Path) -> StandIn:
    """The stand-in of a data set, trained when the cache folder has none yet."""
    path = cache / f"{STAND_IN}-v{VERSION}-{data.spec.name}-{data.revision[:16]}.safetensors"
    if not path.exists():
        content = _serialise(*train(data))
        if not path.exists():  # another process may have been faster; its network is the one to use
            write_atomic(path, content)
    facts, form = _facts(path), (data.spec.channels, data.spec.size, data.spec.classes)
    if (facts["channels"], facts["size"], facts["classes"]) != form:
        raise HarnessError(
            f"the cached stand-in classifier {path} is for images of {facts['channels']} channel(s), "
            f"{facts['size']} px and {facts['classes']} classes",
            f"one for {data.spec.name}: {form[0]} channel(s), {form[1]} px, {form[2]} classes",
            "delete it and repeat the command; it is trained again in less than a minute",
        )
    return StandIn(path, hashlib.sha256(path.read_bytes()).hexdigest(), facts["train_top1"])


def load(path: Path) -> Classifier:
    """The network in a cached file, ready to extract features. Raises HarnessError for a file that is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        facts = _facts(path)
        net = Classifier(facts["channels"], facts["size"], facts["classes"])
        net.load_state_dict(load_file(path))
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise _broken(path, error) from error
    return net.eval().requires_grad_(False)


def _facts(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})["facts"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> HarnessError:
    return HarnessError(
        f"the cached stand-in classifier {path} cannot be read: {error}",
        "a file as the harness wrote it",
        "delete it and repeat the command; it is trained again in less than a minute",
    )


def _serialise(net: Classifier, accuracy: float, data: Dataset) -> bytes:
    from safetensors.torch import save

    spec = data.spec
    facts = {"channels": spec.channels, "size": spec.size, "classes": spec.classes, "train_top1": accuracy}
    # One entry, because safetensors writes several in random order, and equal networks must have equal bytes.
    return save(net.state_dict(), {"facts": json.dumps(facts)})


def train(data: Dataset) -> tuple[Classifier, float, Dataset]:
    """A new network, its top-1 % on (at most 10,000 images of) train, and the data it was trained on.

    Always on the CPU in float32, so that machines differ by rounding only.
    """
    rng, spec = Rng(SEED).at(STAND_IN, VERSION), data.spec
    with torch.random.fork_rng(devices=[]):
        net = Classifier(spec.channels, spec.size, spec.classes)
    _initialise(net, rng.at("weights"))
    net = net.to(memory_format=torch.channels_last).train()
    images, labels = data.train.images, data.train.labels
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=1e-2, fused=True)
    steps = max(FEWEST, min(MOST, EPOCHS * len(labels) // BATCH))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    with torch.enable_grad():
        for index in _batches(len(labels), steps, rng.at("order")):
            x = images[index].contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(net(x), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net = net.to(memory_format=torch.contiguous_format).eval()
    return net, _accuracy(net, images, labels, rng), data


def _initialise(net: nn.Module, rng: Rng) -> None:
    """He's initialisation from named streams; norms start as torch leaves them, at one and zero."""
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            with torch.no_grad():
                parameter.copy_(rng.normal(name, parameter.shape) * (2 / fan_in) ** 0.5)
    nn.init.zeros_(net.head.bias)


def _batches(n: int, steps: int, rng: Rng) -> Iterator[Tensor]:
    """`steps` batches of indices, epoch after epoch in a new random order."""
    size, done, epoch = min(BATCH, n), 0, 0
    while done < steps:
        order = rng.permutation(epoch, n)
        for index in order[: n - n % size].split(size)[: steps - done]:
            yield index
            done += 1
        epoch += 1


def _accuracy(net: Classifier, images: Tensor, labels: Tensor, rng: Rng) -> float:
    index = rng.permutation("accuracy", len(labels))[:10_000]
    with torch.no_grad():
        guess = torch.cat([net(images[part]).argmax(dim=1) for part in index.split(500)])
    return round(100.0 * (guess == labels[index]).double().mean().item(), 2)
