"""Choosing a tap: closed-form ridge regression on part of fit, scored on select, the same for every method.

Ridge has one solution and no iterations, so the choice costs seconds and cannot fail to converge. The rule looks
at the first few of the method's own taps; every method has the same number of candidates (design.md, "Equal tuning").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.method import Tap

# Shapes: n images, D feature width, K classes.

FIT_IMAGES = 10_000  # at most so many of the fit part
ROWS = 4096  # of features that are in float64 at once
RIDGE = 1e-2  # on the correlation matrix of standardised features; fixed, so that only the tap is tried


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
    constant = scale <= 1e-6 * mean.abs()
    return mean, torch.where(constant, torch.ones_like(scale), scale)


def standardise(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """float32 [n, D], computed in float64 a few rows at a time: raw pixels of 50,000 images are gigabytes in it."""
    return torch.cat([((rows.double() - mean) / scale).float() for rows in features.split(ROWS)])


def ridge_top1(fit: Tensor, fit_labels: Tensor, select: Tensor, select_labels: Tensor, classes: int) -> float:
    """Top-1 % on `select` [n, D] of ridge regression onto one-hot targets, fitted on `fit` [n, D] in float64."""
    mean, scale = standardiser(fit)
    x = (fit.double() - mean) / scale
    targets = torch.nn.functional.one_hot(fit_labels, classes).double()
    prior = targets.mean(dim=0)  # the intercept, since x is centred
    gram = x.T @ x / len(x)
    gram.diagonal().add_(RIDGE)
    weights = torch.linalg.solve(gram, x.T @ (targets - prior) / len(x), left=True)  # [D, K]
    guess = ((select.double() - mean) / scale @ weights + prior).argmax(dim=1)
    return 100.0 * (guess == select_labels).double().mean().item()
