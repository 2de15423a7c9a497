"""A method of a few hundred parameters whose features have to change before they tell the toy classes apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from evals._recipe import PLAIN, Recipe
from harness.method import DataSpec, Method, Tap
from harness.rng import Rng
from tests.evals.kit import CLASSES, SIZE

WIDTH = 3
QUICK = Recipe("2400img", 20, (1e-3, 1e-1), trial=0.25, layer_decay=0.75, crop=(1.0, 1.0), **PLAIN)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).tanh()


class Small(Method):
    """A random projection of the pixels to three numbers, two residual blocks; a decoder that features never see."""

    def __init__(self) -> None:
        super().__init__()
        self.data = DataSpec("toy", 1, SIZE, CLASSES)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._build()
        self.requires_grad_(False).eval()
        self.noises: list[float] = []

    def _build(self) -> None:
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.embed, self.decoder = nn.Linear(SIZE * SIZE, WIDTH), nn.Linear(WIDTH, SIZE * SIZE)
        self.blocks = nn.ModuleList([Residual(), Residual()])
        self.norm = nn.LayerNorm(WIDTH)

    def taps(self) -> list[Tap]:
        return [Tap("out")]

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        if taps[0].noise is not None:
            noise = rng.normal("noise", images.shape)
            self.noises.append(noise[0, 0, 0, 0].item())
            images = images + 0.1 * noise
        x = self.embed(images.flatten(1)) + self.token[0]
        for block in self.blocks:
            x = block(x)
        return [self.norm(x) for _ in taps]


class Noisy(Small):
    def taps(self) -> list[Tap]:
        return [Tap("out", 7)]
