"""The method under check, with the real images and the small steps that promises are tried on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.data.dataset import Dataset
from harness.data.pixels import to_float
from harness.method import Batch, DataSpec, Method
from harness.rng import Rng
from harness.train.optim import build_optimizer, set_rate

SHOWN = 5  # names in a sentence
WARM = 17  # passes before a sampler is asked: it may rest on statistics that training gathers


class Broken(Exception):
    """A promise that is not kept: what was found, and what to change, a sentence each."""

    def __init__(self, found: str, change: str) -> None:
        self.found, self.change = found, change
        super().__init__(f"{found}; {change}")


class NotApplicable(Exception):
    """A promise that this method does not make; the message is the reason."""


@dataclass
class Subject:
    """A method at a size, on the fit part of a data set. On the CPU, where equal computations give equal bits."""

    name: str
    cls: type[Method]
    card: dict[str, Any]
    place: Path | None  # the folder of card.toml
    data: Dataset
    out: Path  # where runs may be made
    size: str = "nano"
    closed: tuple[Path, ...] = ()  # files and folders that hold the data set
    reached_out: list[str] = field(default_factory=list)  # what was refused to it so far: connections

    @property
    def spec(self) -> DataSpec:
        return self.data.spec

    @property
    def rng(self) -> Rng:
        return Rng(7).at("contract")

    @cached_property
    def kind(self) -> str:
        return self.cls.__name__

    def recipe(self, spec: DataSpec | None = None, size: str | None = None) -> Any:
        return self.cls.recipe(size or self.size, spec or self.spec)

    def build(self, seed: int = 0) -> Method:
        """The method, initialised from `seed`, in training mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.cls.create(self.recipe(), self.spec).train()

    def images(self, n: int = 16) -> Tensor:
        """[n, C, H, W] in [-1, 1]."""
        return to_float(self.data.fit.images[:n])

    def batch(self, method: Method, n: int = 16) -> Batch:
        """What the harness would hand to `pretrain`: the images, or what the method caches of them."""
        images = self.images(n)
        with torch.no_grad():
            cached = method.eval().cached(images)
        method.train()
        return Batch(images) if cached is None else Batch(None, cached)

    def steps(self, method: Method, batch: Batch, n: int, lr: float) -> list[float]:
        """The losses of `n` passes over one batch, a step of the optimizer between them; the last gradients stay."""
        first = batch.latents if batch.images is None else batch.images
        optimizer = build_optimizer(method, method.optim(batch_size=len(first)))
        set_rate(optimizer, lr)
        losses = []
        for step in range(n):
            if step:
                optimizer.step()
            optimizer.zero_grad()
            loss = method(batch, 0.5, self.rng.at(step)).total
            loss.backward()
            losses.append(loss.item())
        return losses

    @torch.no_grad()
    def warm(self, method: Method, batch: Batch) -> Method:
        """The method after some passes without a step, in evaluation mode."""
        for step in range(WARM):
            method.train()(batch, 0.5, self.rng.at(step))
        return method.eval()


def prepared(method: Method) -> set[int]:
    """Identities of the parameters that the method's preparation trains, and nobody after it."""
    preparation = method.preparation()
    return set() if preparation is None else {id(p) for p in preparation.objective.parameters()}


def listed(names: Iterable[object]) -> str:
    """The first few of many names."""
    every = [str(name) for name in names]
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")
