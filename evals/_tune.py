"""Training a whole network on labels: one training by a recipe, and the choice of its rate on held-out images.

Shapes: B images, D feature width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evals._depths import Way, groups, trainable_copy
from evals._droppath import dropping
from evals._mixing import mixed, strengthened
from evals._recipe import Recipe
from harness.data.batches import Batches
from harness.data.dataset import Part
from harness.errors import Diverged, HarnessError
from harness.evaluation.features import CHUNK, Images
from harness.method import Augment, Method, Optim, Tap
from harness.rng import Rng
from harness.train.optim import rate as rate_at
from harness.train.optim import set_rate

LOOK = 50  # steps between looks at whether the loss is finite, which wait for the device


class Classifier(nn.Module):
    """Logits [B, K] of images: a method's features at a tap, a norm, a linear layer that starts near zero as MAE's."""

    def __init__(self, method: Method, tap: Tap, width: int, classes: int) -> None:
        super().__init__()
        self.method, self.tap = method, tap
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)
        nn.init.normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, rng: Rng) -> Tensor:
        """Noise at a noisy tap is `rng`'s."""
        return self.head(self.norm(self.method.features(images, [self.tap], rng)[0].float()))


@dataclass(frozen=True)
class Task:
    """What is the same in every training of an eval: where it starts, where it reads, how it goes."""

    method: Method  # stays as it is
    tap: Tap
    way: Way
    classes: int
    mirror: bool
    recipe: Recipe
    device: torch.device
    autocast: Callable[[], AbstractContextManager]

    def classifier(self, rng: Rng) -> Classifier:
        """The method's weights under a new head that depends on `rng` alone."""
        method = trainable_copy(self.method)
        for name, parameter in method.named_parameters():
            parameter.requires_grad_(name in self.way.depths)
        with rng.lent("head"):
            return Classifier(method, self.tap, self.way.width, self.classes).to(self.device)

    def about(self) -> dict[str, float]:
        """For the record: what is trained, and what an image costs."""
        return {
            "parameters": self.way.parameters + 2 * self.way.width + (self.way.width + 1) * self.classes,
            "depths": self.way.layers,
            "residual_blocks": len(self.way.residual),
            "flop_img": self.way.flop + 6 * self.way.width * self.classes,
        }


# -- one training -----------------------------------------------------------------------------------------------------


def train(task: Task, part: Part, base_rate: float, rng: Rng, share: float = 1.0) -> tuple[Classifier, int]:
    """A classifier after `share` of the recipe's length on `part`, ready to be asked; and how many images it saw.

    Fresh noise in every step where the tap is noisy. Raises Diverged.
    """
    recipe, net = task.recipe, task.classifier(rng)
    batch = min(recipe.batch, len(part))
    steps = max(1, round(share * recipe.steps(len(part))))
    batches = Batches(
        part, batch, rng, Augment(recipe.crop), task.mirror, None, task.device, labels=True
    )  # fmt: skip
    optim = Optim(base_rate * batch / 256, betas=recipe.betas, warmup=recipe.warmup)
    optimizer = torch.optim.AdamW(_groups(net, task), lr=0.0, betas=recipe.betas, fused=True)
    residual = [net.method.get_submodule(name) for name in task.way.residual]
    net.train()
    for step in range(steps):
        set_rate(optimizer, rate_at(optim, (step + 0.5) / steps))
        at = rng.at("step", step)
        given = batches.at(step)
        images, shares = mixed(strengthened(given.images, recipe, at), given.labels, task.classes, recipe, at)
        with at.lent("dropout"), dropping(residual, recipe.drop_path, at.at("drop path")), task.autocast():
            logits = net(images, at)
        loss = F.cross_entropy(logits.float(), shares, label_smoothing=recipe.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % LOOK == 0 or step + 1 == steps:
            _require_finite(loss.item(), step)
    return net.eval(), steps * batch


def _groups(net: Classifier, task: Task) -> list[dict]:
    recipe = task.recipe
    method = groups(task.way, net.method.named_parameters(), recipe.layer_decay, recipe.weight_decay)
    matrix, vectors = [net.head.weight], [net.head.bias, *net.norm.parameters()]
    return [
        *method,
        {"params": matrix, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _require_finite(loss: float, step: int) -> None:
    if not torch.isfinite(torch.tensor(loss)):
        raise Diverged(step, "loss", loss)


@torch.no_grad()
def guesses(task: Task, net: Classifier, images: Images, rng: Rng) -> Tensor:
    """The class [n] of `images`, in eval mode; noise at a noisy tap depends on `rng` alone."""
    found = []
    for start in range(0, images.n, CHUNK):
        with task.autocast():
            found.append(net(images.chunk(start, CHUNK), rng.at(start)).argmax(dim=1).cpu())
    return torch.cat(found)


def top1(task: Task, net: Classifier, images: Images, rng: Rng) -> float:
    return 100.0 * (guesses(task, net, images, rng) == images.labels).double().mean().item()


# -- the rate ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """The chosen base rate, and the score (top-1 %) of each that did not diverge."""

    base: float
    scores: dict[str, float]
    images: int  # that the trials saw, together


def choose_rate(task: Task, fit: Part, select: Part, rng: Rng) -> Rate:
    """The rate that is best on `select` after training on `fit`; among equals the lower.

    All start alike and see the same. Raises HarnessError where every one diverges.
    """
    scores: dict[float, float] = {}
    seen = 0
    for base in task.recipe.base_rates:
        try:
            net, images = train(task, fit, base, rng, task.recipe.trial)
        except Diverged:
            continue
        held_out = Images(select.images, select.labels, torch.arange(len(select)), task.device)
        scores[base] = top1(task, net, held_out, rng.at("select"))
        seen += images
    if not scores:
        raise HarnessError(
            f"fine-tuning diverged at every rate of {', '.join(f'{r:g}' for r in task.recipe.base_rates)}",
            "a finite loss at one of them",
            "lower rates for every method, for example finetune.recipe.base_rates=1e-5,1e-4",
        )
    best = max(scores, key=lambda base: (scores[base], -base))
    return Rate(best, {f"{base:g}": round(score, 3) for base, score in scores.items()}, seen)


def train_at(task: Task, part: Part, base_rate: float, rng: Rng) -> tuple[Classifier, int]:
    """`train` at the chosen rate. Raises HarnessError where it diverges after all."""
    try:
        return train(task, part, base_rate, rng)
    except Diverged as error:
        raise HarnessError(
            f"fine-tuning at the base rate {base_rate:g} diverged: {error}",
            "a finite loss; shorter trials of that rate had one",
            "lower rates for every method (finetune.recipe.base_rates), or longer trials (finetune.recipe.trial)",
        ) from error
