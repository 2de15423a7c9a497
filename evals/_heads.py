"""Training heads with labels: recipes, and one training for each rate, scored on held-out train.

Shapes: n examples, B batch, K classes. A head stays in train mode for the whole of its training, batch norms included,
and is scored in eval mode. (In the reference the first evaluation leaves them in eval mode for good; card
difformer_diffeed, section 9, pitfall 3.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.evaluation.features import CHUNK, Images
from harness.method import Tap
from harness.rng import Rng
from harness.train import flops


@dataclass(frozen=True)
class Recipe:
    """How a head is trained, but for its length: the optimizer, the rates to try, the rate's course."""

    optimizer: str  # "adamw", "adam", "sgd"
    rates: tuple[float, ...]
    course: str  # "cosine" after a tenth of warm-up, or "steps": a tenth of the rate after every quarter
    weight_decay: float = 0.0


RECIPES = {
    # Ours, for few images: SGD without momentum at the paper's rates hardly leaves its start in so few steps.
    "short": Recipe("adamw", (1e-3, 3e-3, 1e-2), "cosine", 0.05),
    "repo": Recipe("sgd", (1e-3, 1e-2, 5e-2), "steps"),  # of the paper's released scripts
    "paper": Recipe("adam", (1e-4, 3e-4, 1e-3), "steps"),  # of its text, which names no rate
}


class Examples(Protocol):
    """Labelled things that a head can be run on."""

    labels: Tensor  # int64 [n]

    def run(self, head: nn.Module, index: Tensor, rng: Rng) -> Tensor:
        """Logits [B, K] of the examples at `index` [B]."""
        ...


class MapExamples:
    """Maps that were extracted, one list of taps for each noise level."""

    def __init__(
        self, maps: Mapping[Tap, Tensor], levels: Sequence[Sequence[Tap]], labels: Tensor, device: torch.device
    ) -> None:
        self.labels, self._maps, self._levels, self._device = labels, maps, levels, device

    def run(self, head: nn.Module, index: Tensor, rng: Rng) -> Tensor:
        return head([{tap.layer: self._maps[tap][index].to(self._device) for tap in taps} for taps in self._levels])


class ImageExamples:
    """Images, for a head that runs the network by itself."""

    def __init__(self, images: Images) -> None:
        self.labels, self._images = images.labels, images

    def run(self, head: nn.Module, index: Tensor, rng: Rng) -> Tensor:
        return head(self._images.pick(index), rng)


@dataclass(frozen=True)
class Fitted:
    """Heads of the best rate, one for each seed; the score (top-1 % on select) of each rate; what training took."""

    heads: tuple[nn.Module, ...]
    rate: float
    scores: dict[str, float]
    images: int  # different ones
    fit_s: float  # of all heads of the best rate
    fit_flop: float  # of one head; what it learns from counts only where the head makes it (ImageExamples)


def best_of(
    build: Callable[[], nn.Module],
    recipe: Recipe,
    fit: Examples,
    select: Examples,
    epochs: int,
    batch: int,
    rng: Rng,
    device: torch.device,
    seeds: int = 1,
) -> Fitted:
    """A head for each rate, from the same start in the same order; among equal scores the lower rate wins.

    That rate is then trained again from another start in another order for each of the `seeds` but the first.
    """
    cost = fit_flop(built(build, rng).to(device), fit, epochs, batch, rng)
    found: dict[float, Fitted] = {}
    scores: dict[str, float] = {}
    for rate in sorted(recipe.rates):
        begin = time.perf_counter()
        head = train(built(build, rng).to(device), recipe, rate, fit, epochs, batch, rng)
        found[rate] = Fitted((head,), rate, scores, len(fit.labels), time.perf_counter() - begin, cost)
        scores[f"{rate:g}"] = top1(head, select, rng.at("select"))
    best = max(found, key=lambda rate: (scores[f"{rate:g}"], -rate))
    begin = time.perf_counter()
    again = [
        train(built(build, other).to(device), recipe, best, fit, epochs, batch, other)
        for other in (rng.at("repeat", number) for number in range(1, seeds))
    ]
    return replace(
        found[best],
        heads=(*found[best].heads, *again),
        scores={rate: round(score, 3) for rate, score in scores.items()},
        fit_s=found[best].fit_s + time.perf_counter() - begin,
    )


def built(build: Callable[[], nn.Module], rng: Rng) -> nn.Module:
    """A head whose initial weights depend on `rng` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.number("head"))
        return build()


def train(head: nn.Module, recipe: Recipe, rate: float, fit: Examples, epochs: int, batch: int, rng: Rng) -> nn.Module:
    """`head` after `epochs` passes over `fit`, cross entropy; the last incomplete batch of an epoch is left out."""
    n, batch = len(fit.labels), min(batch, len(fit.labels))
    steps = epochs * (n // batch)
    optimizer = _optimizer(head, recipe, rate)
    device = next(head.parameters()).device
    head.train()
    for step in range(steps):
        epoch, place = divmod(step, n // batch)
        if place == 0:
            order = rng.to("cpu").at("epoch", epoch).permutation("order", n)
        index = order[place * batch : (place + 1) * batch]
        for group in optimizer.param_groups:
            group["lr"] = rate * course(recipe.course, step, steps)
        optimizer.zero_grad()
        _loss(head, fit, index, rng.at("step", step)).backward()
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # who times this call times its work
    return head


def _loss(head: nn.Module, fit: Examples, index: Tensor, rng: Rng) -> Tensor:
    logits = fit.run(head, index, rng).float()
    return F.cross_entropy(logits, fit.labels[index].to(logits.device))


def fit_flop(head: nn.Module, fit: Examples, epochs: int, batch: int, rng: Rng) -> float:
    """FLOPs of `train`, measured on one batch; `head` is not to be used afterwards."""
    n, batch = len(fit.labels), min(batch, len(fit.labels))
    head.train()
    step = flops.count(lambda: _loss(head, fit, torch.arange(batch), flops.any_seed(rng)).backward())
    return step * epochs * (n // batch)


def course(name: str, step: int, steps: int) -> float:
    """The share of the peak rate at a step."""
    if name == "steps":
        return 0.1 ** (4 * step // steps)
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    share = torch.tensor((step - warm) / max(1, steps - warm))
    return 0.5 * (1 + torch.cos(torch.pi * share).item())


def _optimizer(head: nn.Module, recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    groups = [
        {"params": [p for p in head.parameters() if p.ndim > 1]},
        {"params": [p for p in head.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return kinds[recipe.optimizer](groups, lr=rate, weight_decay=recipe.weight_decay)


@torch.no_grad()
def guesses(head: nn.Module, examples: Examples, rng: Rng) -> Tensor:
    """The class [n] that `head`, in eval mode, gives each example."""
    head.eval()
    starts = torch.arange(len(examples.labels)).split(CHUNK)
    return torch.cat([examples.run(head, i, rng.at(int(i[0]))).argmax(dim=1).cpu() for i in starts])


def top1(head: nn.Module, examples: Examples, rng: Rng) -> float:
    return 100.0 * (guesses(head, examples, rng) == examples.labels).double().mean().item()
