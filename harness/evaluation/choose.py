"""Choosing a tap: closed-form ridge regression on part of fit, scored on select, the same for every method.

Ridge has one solution and no iterations, so the choice costs seconds and cannot fail to converge. Features stream
through it: a tap leaves its second moments behind, so that a grid of any number of layers and noise levels takes
little memory. The rule looks at the first few of the method's own taps; every method has the same number of candidates
(design.md, "Equal tuning").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.method import Tap
from harness.protocol import COMMON

# Shapes: n images, B images of a chunk, D feature width, K classes.

ROWS = 4096  # of features that are in float64 at once


@dataclass(frozen=True)
class Choice:
    """The chosen tap, how many it was chosen from, and the score (top-1 % on select) of each."""

    tap: Tap
    trials: int
    scores: dict[str, float]


def best(taps: Sequence[Tap], scores: Sequence[float]) -> Choice:
    """The tap of the highest score; among equals the one the method names first."""
    winner = max(range(len(taps)), key=lambda i: (scores[i], -i))
    listing = {str(t): round(s, 3) for t, s in zip(taps, scores, strict=True)}
    return Choice(taps[winner], len(taps), listing)


def standardiser(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale, each [D] float64, of `features` [n, D]; columns that only vary by rounding keep the scale 1."""
    n = len(features)
    mean = sum(rows.double().sum(dim=0) for rows in features.split(ROWS)) / n
    scale = (sum((rows.double() - mean).square().sum(dim=0) for rows in features.split(ROWS)) / n).sqrt()
    return mean, _usable(mean, scale)


def _usable(mean: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale <= 1e-6 * mean.abs(), torch.ones_like(scale), scale)


def standardise(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """float32 [n, D], computed in float64 a few rows at a time: raw pixels of 50,000 images are gigabytes in it."""
    found = torch.empty(features.shape)
    for start in range(0, len(features), ROWS):
        found[start : start + ROWS] = (features[start : start + ROWS].double() - mean) / scale
    return found


class Ridge:
    """Ridge regression onto one-hot targets, in float64, of features that come chunk by chunk.

    The features are standardised by their own mean and scale, and the penalty is on their correlation matrix.
    """

    def __init__(self, classes: int, ridge: float = COMMON.ridge) -> None:
        self.classes, self.ridge = classes, ridge
        self.n = 0
        self._weights: Tensor | None = None

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Learn from `rows` [B, D] of `labels` [B]."""
        x = rows.double()
        if not self.n:
            width = x.shape[1]
            # Moments about a point near the mean: about zero, a large mean would eat the digits of the variance.
            self._about = x.mean(dim=0)
            self._sum, self._square = x.new_zeros(width), x.new_zeros(width, width)
            self._by_class, self._count = x.new_zeros(width, self.classes), x.new_zeros(self.classes)
        x = x - self._about
        targets = torch.nn.functional.one_hot(labels, self.classes).double()
        self.n += len(x)
        self._sum += x.sum(dim=0)
        self._square += x.T @ x
        self._by_class += x.T @ targets
        self._count += targets.sum(dim=0)

    def solve(self) -> None:
        """Find the weights; nothing more can be added afterwards."""
        mean = self._sum / self.n
        # In place: at raw pixels a further copy would be gigabytes.
        gram = self._square.div_(self.n).addr_(mean, mean, alpha=-1)
        scale = _usable(mean + self._about, gram.diagonal().clamp_min(0).sqrt())
        self._prior = self._count / self.n  # the intercept, since x is centred
        gram.div_(scale[:, None]).div_(scale)
        gram.diagonal().add_(self.ridge)
        aims = (self._by_class / self.n - mean.outer(self._prior)) / scale[:, None]
        self._weights = torch.linalg.solve(gram, aims) / scale[:, None]  # [D, K]
        self._mean = mean + self._about
        del self._square

    def guess(self, rows: Tensor) -> Tensor:
        """The class [B] of each of `rows` [B, D]."""
        assert self._weights is not None, "solve() first"
        return ((rows.double() - self._mean) @ self._weights + self._prior).argmax(dim=1)


def ridge_top1(
    taps: Sequence[Tap],
    fit: Iterable[dict[Tap, Tensor]],
    fit_labels: Tensor,
    select: Iterable[dict[Tap, Tensor]],
    select_labels: Tensor,
    classes: int,
) -> list[float]:
    """Top-1 % on `select` of ridge regression fitted on `fit`, for each tap; both are chunks in the labels' order."""
    ridges = {tap: Ridge(classes) for tap in taps}
    for rows, labels in _with_labels(fit, fit_labels):
        for tap, ridge in ridges.items():
            ridge.add(rows[tap], labels)
    for ridge in ridges.values():
        ridge.solve()
    right = dict.fromkeys(taps, 0)
    for rows, labels in _with_labels(select, select_labels):
        for tap, ridge in ridges.items():
            right[tap] += int((ridge.guess(rows[tap]) == labels).sum())
    return [100.0 * right[tap] / len(select_labels) for tap in taps]


def _with_labels(chunks: Iterable[dict[Tap, Tensor]], labels: Tensor) -> Iterable[tuple[dict[Tap, Tensor], Tensor]]:
    seen = 0
    for rows in chunks:
        size = len(next(iter(rows.values())))
        yield rows, labels[seen : seen + size]
        seen += size
