"""Toy methods for the training loop's tests: a step takes a fraction of a millisecond, and shows what it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.budget import parse_budget
from harness.data.dataset import Part
from harness.distributed import ALONE, Ranks
from harness.method import Augment, Batch, DataSpec, Loss, Method, Objective, Optim, Preparation, Tap
from harness.rng import Rng
from harness.store import RunFolder
from harness.train.pretraining import Pretraining
from harness.train.settings import TrainConfig

SPEC = DataSpec("toy", channels=1, size=4, classes=2)
IMAGES = 40
PIXELS = SPEC.channels * SPEC.size**2
LR_PEAK = 1e-2


class Clock:
    """Stands where the ledger's clock stands, so that a test does not depend on how busy its machine is."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()  # every step of a toy takes `step_s` on it


@dataclass(frozen=True)
class ToyConfig:
    width: int = 12
    optimizer: str = "adamw"


class Toy(Method):
    """Denoises through two layers. `calls` counts training steps in a buffer, `progresses` what the loop told it."""

    Config = ToyConfig
    inputs = PIXELS
    step_s = 0.001

    def __init__(self, config: ToyConfig, data: DataSpec) -> None:
        super().__init__()
        self.config, self.data = config, data
        self.first = nn.Linear(self.inputs, config.width)
        self.last = nn.Linear(config.width, self.inputs)
        self.register_buffer("mean", torch.zeros(config.width))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.progresses: list[float] = []

    @classmethod
    def recipe(cls, size: str, data: DataSpec) -> ToyConfig:
        return ToyConfig()

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        self.progresses.append(progress)
        CLOCK.now += self.step_s
        x = (batch.images if batch.latents is None else batch.latents).flatten(1)
        assert len(x), "a method is never given an empty batch"
        hidden = F.gelu(self.first(x + 0.1 * rng.normal("noise", x.shape)))
        self.mean.lerp_(hidden.detach().float().mean(0), 0.1)
        self.calls += 1
        loss = F.mse_loss(self.last(hidden), x)
        return Loss(loss, {"mse": loss.detach()})

    def optim(self, batch_size: int) -> Optim:
        betas = (0.98, 0.92, 0.99) if self.config.optimizer == "adan" else (0.9, 0.95)
        return Optim(LR_PEAK, name=self.config.optimizer, betas=betas, clip_norm=1.0)

    def taps(self) -> list[Tap]:
        return [Tap("hidden")]

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        return [self.first(images.flatten(1)) - self.mean for _ in taps]

    @torch.no_grad()
    def sample(self, n: int, rng: Rng, labels: Tensor | None = None, steps: int | None = None) -> Tensor:
        hidden = rng.normal("start", (n, self.config.width))
        return self.last(hidden).tanh().view(n, SPEC.channels, SPEC.size, SPEC.size)


class ToyPart(Objective):
    """What ToyLatent trains first: a linear encoder and decoder."""

    WIDTH = 6

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(PIXELS, self.WIDTH), nn.Linear(self.WIDTH, PIXELS)

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        CLOCK.now += Toy.step_s
        x = batch.images.flatten(1)
        assert len(x), "a part is never given an empty batch"
        z = self.encode(x)
        loss = F.mse_loss(self.decode(z + 0.01 * rng.normal("noise", z.shape)), x)
        return Loss(loss, {"mse": loss.detach()})

    def optim(self, batch_size: int) -> Optim:
        return Optim(LR_PEAK)


class ToyLatent(Toy):
    """Toy on latents that it first learns to make, with a quarter of the budget."""

    inputs = ToyPart.WIDTH
    share = 0.25
    part_batch: int | None = None

    def __init__(self, config: ToyConfig, data: DataSpec) -> None:
        super().__init__(config, data)
        self.part = ToyPart()

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        loss = super().pretrain(batch, progress, rng)
        # Reaches the part's weights, so that only freezing keeps them as they were prepared.
        return loss._replace(total=loss.total + 0.1 * self.part.decode(batch.latents.flatten(1)).square().mean())

    def preparation(self) -> Preparation:
        return Preparation(self.part, self.share, self.part_batch)

    def cached(self, images: Tensor) -> Tensor:
        return self.part.encode(images.flatten(1))

    def augment(self) -> Augment:
        return Augment(mirror=True)


class ToyLatentInThrees(ToyLatent):
    """Its part learns from three images a step."""

    part_batch = 3


class SlowStep(Toy):
    """A step takes ten milliseconds of the tests' clock."""

    step_s = 0.01


def toy_part(n: int = IMAGES) -> Part:
    shape = (n, SPEC.channels, SPEC.size, SPEC.size)
    images = Rng(0).integers("images", 256, shape).to(torch.uint8)
    return Part(images, torch.arange(n) % SPEC.classes, torch.arange(n))


def build(method: type[Method] = Toy, **config: Any) -> Any:
    """The method with its initial weights, equal at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return method.create(ToyConfig(**config), SPEC)


def training(
    folder: Path,
    budget: str,
    method: type[Method] | None = None,
    *,
    optimizer: str = "adamw",
    batch_size: int = 8,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
    ranks: Ranks = ALONE,
    **settings: Any,
) -> Pretraining:
    """A run of a toy method; by default it neither logs nor saves between its fixed points."""
    return Pretraining(
        method=build(method or Toy, optimizer=optimizer),
        fit=toy_part(),
        mirror=True,
        budget=parse_budget(budget),
        settings=TrainConfig(**{"checkpoint_s": 1e9, "log_s": 1e9, **settings}),
        batch_size=batch_size,
        folder=RunFolder(folder),
        rng=Rng(0),
        device=torch.device("cpu"),
        ranks=ranks,
        should_stop=should_stop,
        say=say,
    )
