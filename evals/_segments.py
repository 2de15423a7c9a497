"""Heads that give each pixel a class from frozen maps: what they are, how they learn, how they are scored.

"linear" is batch norm and a 1 x 1 convolution, as DINOv2 segments (card evaluation, section 6); "decoder" two 3 x 3
convolutions, each with batch norm and ReLU, and a 1 x 1 convolution, at the map's resolution. Logits are up-sampled
bilinearly to the mask, and features never. Images of one batch may differ in size: norms see the places of all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evals._heads import Recipe, built, course
from harness.data.layouts import IGNORED

if TYPE_CHECKING:
    from harness.rng import Rng

# Shapes: B batch, D feature width, H and W of a map, h and w of a mask, K classes. Maps of one size are one group.

RECIPE = Recipe("adamw", (3e-3, 1e-2, 3e-2), "cosine", 1e-4)  # 0.1 scored below 0.03 on select where it was tried
SCORED = 16  # images whose logits are up-sampled at once, where nothing is learned


class Head(nn.Module):
    """Logits of maps, group by group."""

    def forward(self, groups: Sequence[Tensor]) -> list[Tensor]:
        """[B, K, H, W] of every [B, D, H, W]."""
        raise NotImplementedError


class Linear(Head):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm, self.classify = nn.BatchNorm2d(width), nn.Conv2d(width, classes, 1)

    def forward(self, groups: Sequence[Tensor]) -> list[Tensor]:
        return [self.classify(maps) for maps in _normed(self.norm, groups)]


class Decoder(Head):
    """`hidden` channels between its convolutions."""

    def __init__(self, width: int, classes: int, hidden: int) -> None:
        super().__init__()
        widths = (width, hidden, hidden)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(hidden) for _ in self.convs)
        self.classify = nn.Conv2d(hidden, classes, 1)

    def forward(self, groups: Sequence[Tensor]) -> list[Tensor]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            groups = [F.relu(maps) for maps in _normed(norm, [conv(maps) for maps in groups])]
        return [self.classify(maps) for maps in groups]


def _normed(norm: nn.BatchNorm2d, groups: Sequence[Tensor]) -> list[Tensor]:
    """Each group normalised by the statistics of all their places."""
    if len(groups) == 1:
        return [norm(groups[0])]
    rows = [maps.transpose(0, 1).flatten(1) for maps in groups]  # [D, B*H*W]
    found = norm(torch.cat(rows, dim=1)[None, :, None])[0, :, 0].split([row.shape[1] for row in rows], dim=1)
    return [
        part.view(maps.shape[1], len(maps), *maps.shape[2:]).transpose(0, 1)
        for part, maps in zip(found, groups, strict=True)
    ]


class Examples:
    """Maps [D, H, W] with their masks [h, w], of any sizes, on the CPU."""

    def __init__(self, maps: Sequence[Tensor], masks: Sequence[Tensor], device: torch.device) -> None:
        self.masks, self._maps, self._device = masks, maps, device

    def __len__(self) -> int:
        return len(self._maps)

    @property
    def width(self) -> int:
        return len(self._maps[0])

    def groups(self, index: Iterable[int]) -> list[tuple[Tensor, Tensor]]:
        """Maps [B, D, H, W] float32 and masks [B, h, w] int64 of those at `index`, sizes apart, on the device."""
        by_size: dict[tuple, list[int]] = {}
        for i in index:
            by_size.setdefault((self._maps[i].shape, self.masks[i].shape), []).append(i)
        return [
            (
                torch.stack([self._maps[i] for i in some]).to(self._device).float(),
                torch.stack([self.masks[i] for i in some]).to(self._device).long(),
            )
            for some in by_size.values()
        ]


@dataclass(frozen=True)
class Fitted:
    """The head of the best rate, the score (mIoU % on select) of each, and the seconds that training it took."""

    head: Head
    rate: float
    scores: dict[str, float]
    fit_s: float


def best_of(
    build: Callable[[], Head],
    fit: Examples,
    select: Examples,
    score: Callable[[Tensor], float],  # of a confusion matrix
    epochs: int,
    batch: int,
    rng: Rng,
    device: torch.device,
) -> Fitted:
    """A head for each rate, from the same start in the same order; among equal scores the lower rate wins."""
    found: dict[float, tuple[float, Head, float]] = {}
    for rate in sorted(RECIPE.rates):
        begin = time.perf_counter()
        head = train(built(build, rng).to(device), rate, fit, epochs, batch, rng)
        spent = time.perf_counter() - begin
        found[rate] = (score(confusion(head, select)), head, spent)
    best = max(found, key=lambda rate: (found[rate][0], -rate))
    scores = {f"{rate:g}": round(found[rate][0], 3) for rate in found}
    return Fitted(found[best][1], best, scores, found[best][2])


def train(head: Head, rate: float, fit: Examples, epochs: int, batch: int, rng: Rng) -> Head:
    """`head` after `epochs` passes over `fit`; the last incomplete batch of an epoch is left out."""
    n, batch = len(fit), min(batch, len(fit))
    steps = epochs * (n // batch)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in head.parameters() if p.ndim > 1], "weight_decay": RECIPE.weight_decay},
            {"params": [p for p in head.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=rate,
    )
    head.train()
    for step in range(steps):
        epoch, place = divmod(step, n // batch)
        if place == 0:
            order = rng.to("cpu").at("epoch", epoch).permutation("order", n).tolist()
        for group in optimizer.param_groups:
            group["lr"] = rate * course(RECIPE.course, step, steps)
        optimizer.zero_grad()
        loss(head, fit.groups(order[place * batch : (place + 1) * batch])).backward()
        optimizer.step()
    device = next(head.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # who times this call times its work
    return head


def loss(head: Head, groups: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Cross entropy over all pixels that are not ignored, at the masks' size."""
    logits = head([maps for maps, _ in groups])
    total, count = logits[0].new_zeros(()), 0
    for found, (_, masks) in zip(logits, groups, strict=True):
        large = upsampled(found, masks.shape[-2:])
        total = total + F.cross_entropy(large, masks, ignore_index=IGNORED, reduction="sum")
        count = count + (masks != IGNORED).sum()
    return total / torch.as_tensor(count).clamp(min=1)


def upsampled(logits: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(logits.float(), tuple(size), mode="bilinear", align_corners=False)


@torch.no_grad()
def guesses(head: Head, maps: Tensor, size: Sequence[int]) -> Tensor:
    """The class [B, h, w] that `head`, in eval mode, gives each pixel of masks of `size`."""
    head.eval()
    return upsampled(head([maps])[0], size).argmax(dim=1)


# -- scores -----------------------------------------------------------------------------------------------------------


def confusion(head: Head, examples: Examples) -> Tensor:
    """Pixels of each true class (rows) that were given each class (columns): int64 [K, K] on the CPU."""
    classes = head.classify.out_channels
    total = torch.zeros(classes, classes, dtype=torch.int64)
    for index in torch.arange(len(examples)).split(SCORED):
        for maps, masks in examples.groups(index.tolist()):
            total += confused(masks, guesses(head, maps, masks.shape[-2:]), classes)
    return total


def confused(truth: Tensor, guess: Tensor, classes: int) -> Tensor:
    """The same of one set of pixels; those that `truth` ignores are left out."""
    seen = truth != IGNORED
    pairs = truth[seen].long() * classes + guess[seen].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu()


def ious(matrix: Tensor) -> Tensor:
    """Intersection over union of each class, float64 [K]; nan for one that is in no mask and was never guessed."""
    both = matrix.diagonal().double()
    return both / (matrix.sum(dim=0) + matrix.sum(dim=1) - both)


def mean_iou(matrix: Tensor, counted: Tensor) -> float:
    """In %, over the classes with a pixel in the masks, as far as they are `counted` (bool [K])."""
    counted = counted & (matrix.sum(dim=1) > 0)
    return 100.0 * ious(matrix)[counted].mean().item() if counted.any() else 0.0


def pixel_accuracy(matrix: Tensor) -> float:
    """In %, of all pixels that are not ignored."""
    return 100.0 * (matrix.diagonal().sum() / matrix.sum().clamp(min=1)).item()


def majority(mask: Tensor, places: Sequence[int], classes: int) -> Tensor:
    """The most frequent label of the pixels of each place: int64 [H, W], IGNORED among them, of a mask [h, w]."""
    known = torch.where(mask == IGNORED, classes, mask.long())
    shares = F.adaptive_avg_pool2d(F.one_hot(known, classes + 1).permute(2, 0, 1).double(), tuple(places))
    label = shares.argmax(dim=0)
    return torch.where(label == classes, IGNORED, label)
