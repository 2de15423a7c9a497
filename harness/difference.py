"""How far two methods differ, and whether that can be told from chance (card evaluation, section 9).

Two things are drawn at random: the seed of the pre-training, and the images of the test set. Where records keep which
images were guessed right, the images are resampled (paired: the same ones for both methods), and the scatter over
seeds is added to it; without them, or for scores that are no mean over images, the seeds alone speak.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
BOTH = "paired over test images (the bootstrap's standard error) and over seeds"
IMAGES = "paired bootstrap over test images; one seed"
SEEDS = "paired t over seeds"
UNPAIRED = "Welch's t over seeds"


@dataclass(frozen=True)
class Measured:
    """One method's number for each of its seeds, and for each seed which test images were guessed right."""

    values: Mapping[Hashable, float]  # by seed
    hits: Mapping[Hashable, NDArray[np.float64]] | None = None  # [n] in [0, 1] by seed; the mean is the value / `scale`
    scale: float = 100.0  # from the share of images to the value


@dataclass(frozen=True)
class Difference:
    """The mean difference of two methods with its 95 % interval, and the test that gave it."""

    mean: float
    low: float
    high: float
    test: str

    @property
    def told(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def difference(one: Measured, other: Measured) -> Difference | None:
    """`one` minus `other`; None where nothing says how far chance goes: one seed, and no images."""
    seeds = [seed for seed in one.values if seed in other.values]
    if not seeds:
        return _unpaired(one, other)
    gaps = [one.values[seed] - other.values[seed] for seed in seeds]
    if not all(map(math.isfinite, gaps)):
        return None
    images = _images(one, other, seeds)
    if images is not None:
        return _over_images(gaps, images * one.scale)
    if len(seeds) < 2:
        return None
    half = _t(len(gaps) - 1) * _error(gaps)
    mean = statistics.fmean(gaps)
    return Difference(mean, mean - half, mean + half, SEEDS)


def _images(one: Measured, other: Measured, seeds: Sequence[Hashable]) -> NDArray[np.float64] | None:
    """[seeds, n] differences image by image; None where a record does not keep them."""
    if one.hits is None or other.hits is None or one.scale != other.scale:
        return None
    if not all(seed in one.hits and seed in other.hits for seed in seeds):
        return None
    rows = [one.hits[seed] - other.hits[seed] for seed in seeds]
    return None if len({len(row) for row in rows}) > 1 else np.stack(rows)


def _over_images(gaps: Sequence[float], images: NDArray[np.float64]) -> Difference:
    """Of one seed the percentiles of the resampled means. Of several, the standard error of those means, which is known
    without drawing them, and that over seeds together, times the mean of the two quantiles, each with the weight of
    its variance (Cochran's approximation).
    """
    seeds, n = images.shape
    mean, per_image = statistics.fmean(gaps), images.mean(axis=0)
    if seeds == 1:
        low, high = np.quantile(_resampled(per_image), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Difference(mean, float(low), float(high), IMAGES)
    # What a seed does to single images is in the scatter over seeds already: it must not count twice.
    of_images, of_seeds = float(per_image.var()) / n * _of_images_alone(images), _error(gaps) ** 2
    total = of_images + of_seeds
    quantile = (_t(seeds - 1) * of_seeds + _t(n - 1) * of_images) / total if total else 0.0
    half = quantile * math.sqrt(total)
    return Difference(mean, mean - half, mean + half, BOTH)


def _resampled(per_image: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each of `RESAMPLES` draws of n images: how often each distinct value comes up is a multinomial."""
    n = len(per_image)
    values, counts = np.unique(per_image, return_counts=True)
    return np.random.default_rng(0).multinomial(n, counts / n, size=RESAMPLES) @ values / n


def _of_images_alone(images: NDArray[np.float64]) -> float:
    """The share of the variance over images, of means over seeds, that is left without what differs by seed."""
    of_mean = images.mean(axis=0).var()
    centred = images - images.mean(axis=1, keepdims=True)
    of_seeds = centred.var(axis=0, ddof=1).mean() / len(images)
    return max(0.0, 1 - of_seeds / of_mean) if of_mean > 0 else 0.0


def _unpaired(one: Measured, other: Measured) -> Difference | None:
    """Welch's interval, for methods that share no seed."""
    parts = [list(one.values.values()), list(other.values.values())]
    if min(map(len, parts)) < 2 or not all(math.isfinite(v) for part in parts for v in part):
        return None
    squares = [_error(part) ** 2 for part in parts]
    mean = statistics.fmean(parts[0]) - statistics.fmean(parts[1])
    total = sum(squares)
    if not total:
        return Difference(mean, mean, mean, UNPAIRED)
    freedom = total**2 / sum(square**2 / (len(part) - 1) for square, part in zip(squares, parts, strict=True))
    half = _t(freedom) * math.sqrt(total)
    return Difference(mean, mean - half, mean + half, UNPAIRED)


def ranks(rows: Sequence[Measured], higher: bool = True) -> list[tuple[int, int]]:
    """The best and the worst place that each row may have: it is behind those that it can be told to be behind.

    Each pair is compared at 95 %; nothing is corrected for the number of pairs.
    """
    behind, ahead = [0] * len(rows), [0] * len(rows)
    for i in range(len(rows)):
        for j in range(i):
            gap = difference(rows[i], rows[j])
            if gap is None or not gap.told:
                continue
            better, worse = (i, j) if (gap.mean > 0) == higher else (j, i)
            behind[worse] += 1
            ahead[better] += 1
    return [(1 + behind[i], len(rows) - ahead[i]) for i in range(len(rows))]


def _error(values: Sequence[float]) -> float:
    """The standard error of their mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def _t(freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))
