"""A small data set and methods for tests of evals, of the same shape as the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from harness.data.dataset import Part
from harness.evaluation import Context
from harness.method import DataSpec, Method, Tap
from harness.records import TestOpened
from harness.rng import Rng

CLASSES, SIZE = 3, 8


@dataclass
class ToyData:
    """What evals use of harness.data.dataset.Dataset."""

    spec: DataSpec
    train: Part
    fit_n: int
    test: Part
    title: str = "toy"
    mirror: bool = False
    metric: str = "top1"
    revision: str = "0123456789abcdef"
    opened: list[TestOpened] = field(default_factory=list)

    @property
    def fit(self) -> Part:
        return self.train.subset(slice(0, self.fit_n))

    @property
    def select(self) -> Part:
        return self.train.subset(slice(self.fit_n, None))

    @property
    def test_n(self) -> int:
        return len(self.test)

    def open_test(self, by: str) -> Part:
        self.opened.append(TestOpened(by=by, at="2026-01-01T00:00:00+00:00"))
        return self.test


def toy_data(fit: int = 300, select: int = 90, test: int = 120, noise: float = 70.0) -> ToyData:
    """Images of three classes: a bright bar each, under noise."""
    return ToyData(
        DataSpec("toy", 1, SIZE, CLASSES), _part("train", fit + select, noise), fit, _part("test", test, noise)
    )


def _part(name: str, n: int, noise: float) -> Part:
    rng = Rng(11).at(name)
    labels = torch.arange(n) % CLASSES
    images = 100 + noise * rng.normal("noise", (n, 1, SIZE, SIZE))
    for k in range(CLASSES):
        images[labels == k, :, :, 2 * k : 2 * k + 2] += 60
    return Part(images.round().clamp(0, 255).to(torch.uint8), labels, torch.arange(n))


class Toy(Method):
    """Features of four layers that know less and less of the class, and noise for samples; counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[tuple[Tap, ...]] = []

    def taps(self) -> list[Tap]:
        return [Tap("poor"), Tap("rich"), Tap("rich", 5), Tap("blind"), Tap("never")]

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        self.passes.append(tuple(taps))
        noised = images + 0.1 * rng.normal("noise", images.shape) if taps[0].noise is not None else images
        flat = noised.flatten(1)
        columns = noised.mean(dim=(1, 2))
        table = {"poor": flat[:, :6], "rich": torch.cat([columns, flat[:, :4]], 1), "blind": flat[:, :1] * 0 + 1}
        return [table[tap.layer] for tap in taps]

    def sample(self, n: int, rng: Rng, labels: Tensor | None = None, steps: int | None = None) -> Tensor:
        return rng.uniform("samples", (n, 1, SIZE, SIZE)) * 2 - 1


def context(folder: Path, method: Method | None = None, data: ToyData | None = None, **settings) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(
        (method or Toy()).eval(),
        data or toy_data(),
        Rng(3).at("evaluate"),
        pictures=folder / "pictures",
        cache=folder / "cache",
        **settings,
    )
