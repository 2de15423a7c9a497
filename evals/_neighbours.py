"""Copies: how near samples lie to the images that the method was trained on (card evaluation, section 7.2).

Distances between sets do not see a copied training image. Held-out training images (the select part), which the method
never saw, say how near an image that is no copy lies to the fit part: the hundredth of them that lies nearest draws the
line. Of a method that learned the distribution and copies nothing, about one sample in a hundred lies nearer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from harness.errors import HarnessError

if TYPE_CHECKING:
    from evals._extractors import Extractor
    from evals._yardstick import Real
    from harness.data.dataset import Dataset

# Shapes: n samples, m fit images, s select images, k neighbours, D feature width, C channels, H = W image side.

QUANTILE = 0.01
ROWS = 4096  # of the fit part that are compared at once
MOST = 10_000  # samples, and held-out images, that are compared
FEWEST = 20  # held-out images, to draw a line among


class Held(NamedTuple):
    """A training set's features, apart by what a method may have seen."""

    fit: Tensor  # [m, D]
    index: Tensor  # int64 [m], where each stands in train
    line: float  # the QUANTILE of the distances of select to fit
    median: float  # of the same


def held(real: Real, fit_n: int) -> Held:
    """Of the reference `train`, whose first `fit_n` images are fit. Raises HarnessError for too few held out."""
    seen = real.index < fit_n
    fit, select = real.features[seen], real.features[~seen]
    if len(select) < FEWEST:
        raise HarnessError(
            f"{len(select)} held-out training images, to tell copies from samples by", f"at least {FEWEST}"
        )
    apart = nearest(select[:MOST], fit, 1)[0][:, 0].double()
    return Held(fit, real.index[seen], apart.quantile(QUANTILE).item(), apart.median().item())


def nearest(of: Tensor, among: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The distances [n, k] from each of `of` [n, D] to its nearest `among` [m, D], ascending, and which they are."""
    best, which = of.new_full((len(of), 0), 0.0), torch.zeros(len(of), 0, dtype=torch.long)
    for start in range(0, len(among), ROWS):
        apart = torch.cdist(of, among[start : start + ROWS].to(of.dtype))
        near, index = apart.topk(min(k, apart.shape[1]), dim=1, largest=False)
        both, choice = torch.cat([best, near], dim=1).topk(min(k, best.shape[1] + near.shape[1]), dim=1, largest=False)
        which = torch.cat([which, index + start], dim=1).gather(1, choice)
        best = both
    return best, which


def copies(samples: Tensor, of: Held) -> tuple[float, float]:
    """The share in % of (the first MOST) `samples` [n, D] beyond the line, and their median distance over select's."""
    apart = nearest(samples[:MOST], of.fit, 1)[0][:, 0].double()
    return 100.0 * (apart < of.line).double().mean().item(), apart.median().item() / max(of.median, 1e-12)


def picture(samples: Tensor, extractor: Extractor, of: Held, data: Dataset, k: int) -> Tensor:
    """A row for each of `samples` uint8 [n, C, H, W]: itself, a gap, `k` nearest of fit in features, a gap, in pixels.

    uint8 [n * (2k + 3), C, H, W].
    """
    _, near = nearest(extractor.look(samples).features, of.fit, k)
    by_features = data.train.images[of.index[near.flatten()]].unflatten(0, near.shape)
    fit = data.fit.images
    _, near = nearest(samples.flatten(1).float(), fit.flatten(1), k)
    by_pixels = fit[near.flatten()].unflatten(0, near.shape)
    gap = torch.full_like(samples[:, None], 255)
    return torch.cat([samples[:, None], gap, by_features, gap, by_pixels], dim=1).flatten(0, 1)
