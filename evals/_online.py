"""Linear heads trained while augmented images pass through the frozen network, for the presets of the linear probe.

All heads of a training read the features of the same pass; each has a loss and a rate of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.data import augment
from harness.evaluation import Context
from harness.evaluation.features import CHUNK, Images
from harness.method import Augment, Tap, by_noise
from harness.rng import Rng

# Shapes: B batch, H heads, D feature width, K classes, n images, C channels, S side of the images.

SHIFT = 4  # pixels at most, of DDAE's augmentation


@dataclass(frozen=True)
class Recipe:
    """How a preset trains its heads; a head for each of its rates at each of its taps."""

    who: str  # in the column's title
    optimizer: str  # "sgd", "lars", "adam"
    rates: tuple[float, ...]
    per: int  # images: the rate of a step is the base rate x batch / per
    epochs: int
    course: Callable[[float, int], float]  # (epochs done, epochs in all) -> share of the rate
    crop: Augment | None  # None: DDAE's shifts
    norm: bool = False  # a batch norm without scale and shift before the head
    spread: float | None = 0.01  # of the first weights, under biases of zero; None: as torch starts a layer
    remainder: bool = False  # the last, smaller batch of an epoch is a step too
    select: bool = False  # the best head is chosen on select, and heads train on fit; else on all of train
    faster: float = 10.0  # times higher rates in the short length, where theirs hardly move a head from its start


class Heads(nn.Module):
    """A linear head for each tap and rate, the heads of a tap after each other."""

    def __init__(self, widths: Mapping[Tap, int], classes: int, recipe: Recipe, rng: Rng) -> None:
        super().__init__()
        self.names = [(tap, rate) for tap in widths for rate in recipe.rates]
        self.taps, self.classes = list(widths), classes
        with rng.to("cpu").lent("heads"):
            self.norms = nn.ModuleList(
                nn.BatchNorm1d(width, affine=False, eps=1e-6) if recipe.norm else nn.Identity()
                for width in widths.values()
            )
            self.linear = nn.ModuleList(nn.Linear(widths[tap], classes) for tap, _ in self.names)
            if recipe.spread is not None:
                for layer in self.linear:
                    nn.init.normal_(layer.weight, std=recipe.spread)
                    nn.init.zeros_(layer.bias)

    def forward(self, features: Mapping[Tap, Tensor]) -> Tensor:
        """Logits [B, H, K] of the heads of each tap in `features` [B, D]; one product for all heads of a tap."""
        found, each = [], len(self.names) // len(self.taps)
        for number, (tap, norm) in enumerate(zip(self.taps, self.norms, strict=True)):
            if tap not in features:
                continue
            heads = self.linear[number * each : (number + 1) * each]
            weight, bias = torch.cat([h.weight for h in heads]), torch.cat([h.bias for h in heads])
            found.append(F.linear(norm(features[tap]), weight, bias).unflatten(1, (each, self.classes)))
        return torch.cat(found, dim=1)


# -- training ---------------------------------------------------------------------------------------------------------


def train(
    context: Context, recipe: Recipe, taps: Sequence[Tap], images: Images, epochs: int, batch: int, rng: Rng
) -> Heads:
    """Heads after `epochs` passes of `images` through the network, each pass in another order and augmentation."""
    batch = min(batch, images.n)
    steps = math.ceil(images.n / batch) if recipe.remainder else images.n // batch
    one = _read(context, taps, images.chunk(0, 1), rng.at("width"))
    widths = {tap: one[tap].shape[1] for tap in taps}
    heads = Heads(widths, context.data.spec.classes, recipe, rng).to(context.device).train()
    optimizer = optimizer_of(heads, recipe, batch)
    labels = images.labels
    for epoch in range(epochs):
        order = rng.to("cpu").at("epoch", epoch).permutation("order", images.n)
        for step, index in enumerate(order.split(batch)[:steps]):
            here = rng.at("epoch", epoch, "step", step)
            seen = augmented(images.pick(index), recipe.crop, context.data.mirror, here)
            share = recipe.course(epoch + step / steps, epochs)
            advance(heads, optimizer, share, _read(context, taps, seen, here), labels[index].to(context.device))
    return heads.eval()


def optimizer_of(heads: Heads, recipe: Recipe, batch: int) -> torch.optim.Optimizer:
    """The recipe's optimizer, with a group for each rate, `peak`, and kind of parameter."""
    groups = []
    for kind in ("weight", "bias"):
        for rate in recipe.rates:
            layers = [h for h, (_, its) in zip(heads.linear, heads.names, strict=True) if its == rate]
            group = {"params": [getattr(h, kind) for h in layers], "peak": rate * batch / recipe.per}
            if recipe.optimizer == "lars":
                # timm's adapts to norms only with weight decay, of which there is none, or where told to.
                group["always_adapt"] = kind == "weight"
            groups.append(group)
    if recipe.optimizer == "lars":
        from timm.optim import Lars

        return Lars(groups, lr=1.0, momentum=0.9, trust_coeff=1e-3, eps=0.0)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups)
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def advance(
    heads: Heads, optimizer: torch.optim.Optimizer, share: float, features: Mapping[Tap, Tensor], labels: Tensor
) -> None:
    """One step of every head at `share` of its peak rate. Losses are summed, so that heads do not see each other."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    logits = heads(features)
    each = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]), reduction="sum")
    optimizer.zero_grad()
    (each / len(labels)).backward()
    optimizer.step()


def _read(context: Context, taps: Sequence[Tap], images: Tensor, rng: Rng) -> dict[Tap, Tensor]:
    """Features [B, D] at each tap, one pass for each noise level, and fresh noise in every step."""
    found = {}
    for together in by_noise(taps):
        level = -1 if together[0].noise is None else together[0].noise
        with torch.no_grad(), context.autocast():
            values = context.method.features(images, together, rng.at("noise", level))
        found.update((tap, value.float()) for tap, value in zip(together, values, strict=True))
    return found


def augmented(images: Tensor, crop: Augment | None, mirror: bool, rng: Rng) -> Tensor:
    """`images` [B, C, S, S] in [-1, 1], cropped and resized, or shifted over black; mirrored where data allow it."""
    if crop is not None:
        boxes = augment.draw(len(images), images.shape[-1], crop, mirror, rng)
        return images if boxes is None else augment.resample(images, boxes, crop.interpolation)
    n, side = len(images), images.shape[-1]
    padded = F.pad(images, [SHIFT] * 4, value=-1.0)
    top, left = (rng.integers(way, 2 * SHIFT + 1, (n, 1)) for way in ("top", "left"))
    row, column = (torch.arange(side, device=images.device) + start for start in (top, left))
    if mirror:
        column = torch.where(rng.uniform("mirror", (n, 1)) < 0.5, column.flip(1), column)
    place = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[place, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def guesses(heads: Heads, features: Mapping[Tap, Tensor], device: torch.device) -> dict[tuple[Tap, float], Tensor]:
    """The class [n] that every head of the taps of `features` [n, D] gives; -1 from a head that diverged."""
    names, found = [(tap, rate) for tap, rate in heads.names if tap in features], []
    for index in torch.arange(len(next(iter(features.values())))).split(CHUNK):
        logits = heads.eval()({tap: rows[index].to(device) for tap, rows in features.items()}).cpu()
        found.append(logits.argmax(dim=2).masked_fill(~logits.isfinite().all(dim=2), -1))
    return dict(zip(names, torch.cat(found).unbind(dim=1), strict=True))
