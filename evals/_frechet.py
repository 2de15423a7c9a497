"""Distances between sets of images by torch-fidelity's formulas, from features that are there already.

The library's helpers that map features to a metric are called directly (card evaluation, sections 7.4 and 7.5): samples
come in keyed chunks, and the library's own loaders would draw from the global random state and read images from
folders. Its feature cache is not used either: it is keyed by a name one gives, while ours (`_yardstick.reference`) is
keyed by the data's revision and the weights' checksum. Features go in as float64, because the mean of 50,000 float32
rows is not good to the digits we print.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from harness.errors import HarnessError

# Shapes: n images, B of a chunk, D feature width, K classes.

NEIGHBOUR = 3  # whose distance is the radius of precision and recall (card evaluation, section 7.1)
MOST = 10_000  # images of each set that precision and recall look at
ROWS = 2_000  # of the distances between them that are held at once


class Statistics(NamedTuple):
    """The moments of a set of images."""

    mean: Tensor  # [D] float64
    covariance: Tensor  # [D, D] float64, with n - 1
    n: int


class Moments:
    """Running sums of features, so that a training set of any size passes in chunks."""

    def __init__(self) -> None:
        self.n = 0
        self._shift: Tensor | None = None  # about which is summed; near the mean, so that little cancels
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """[B, D]."""
        x = features.double()
        if self._shift is None:
            self._shift = x.mean(dim=0)
            self._sum, self._squares = torch.zeros_like(self._shift), x.new_zeros(x.shape[1], x.shape[1])
        x = x - self._shift
        self.n += len(x)
        self._sum += x.sum(dim=0)
        self._squares += x.T @ x

    def statistics(self) -> Statistics:
        off = self._sum / self.n
        covariance = (self._squares - self.n * torch.outer(off, off)) / (self.n - 1)
        return Statistics(self._shift + off, covariance, self.n)


def statistics(features: Tensor) -> Statistics:
    """Of [n, D]."""
    both = fid_features_to_statistics(features.double())
    return Statistics(torch.from_numpy(both["mu"]), torch.from_numpy(np.atleast_2d(both["sigma"])), len(features))


def without(whole: Statistics, part: Statistics) -> Statistics:
    """The statistics of what is left of a set without a part of it, exactly."""
    n = whole.n - part.n
    mean = (whole.n * whole.mean - part.n * part.mean) / n
    scatter = (whole.n - 1) * whole.covariance - (part.n - 1) * part.covariance
    for held in (part, Statistics(mean, whole.covariance, n)):
        off = held.mean - whole.mean
        scatter = scatter - held.n * torch.outer(off, off)
    return Statistics(mean, scatter / (n - 1), n)


def frechet(a: Statistics, b: Statistics) -> float:
    """|mean difference|^2 + trace(A + B - 2 (A B)^(1/2))."""
    plain = [{"mu": s.mean.numpy(), "sigma": s.covariance.numpy()} for s in (a, b)]
    return fid_statistics_to_metric(*plain, verbose=False)[KEY_METRIC_FID]


def kernel_distance(a: Tensor, b: Tensor, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Mean and spread over random subsets of the unbiased MMD of features [n, D], cubic kernel (KID's formula).

    Raises HarnessError where a set is smaller than a subset.
    """
    if min(len(a), len(b)) < size:
        raise HarnessError(
            f"kernel distances over subsets of {size} images, from sets of {len(a)} and {len(b)}",
            "sets at least as large as a subset",
            f"generation.kernel_size={min(len(a), len(b))} or less",
        )
    found = kid_features_to_metric(
        a.double(), b.double(), kid_subsets=subsets, kid_subset_size=size, rng_seed=seed % 2**32, verbose=False
    )
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]


def precision_recall(drawn: Tensor, real: Tensor) -> tuple[float, float]:
    """The share of `drawn` [n, D] in reach of `real` [n, D] and the other way round (Kynkäänniemi et al. 2019).

    Reach is the distance to the third neighbour of the own set. Both sets are cut to equal counts, MOST at most, since
    reach shrinks with the count. Raises HarnessError for sets without a third neighbour.
    """
    n = min(len(drawn), len(real), MOST)
    if n <= NEIGHBOUR:
        raise HarnessError(
            f"precision and recall of {len(drawn)} against {len(real)} images",
            f"more than {NEIGHBOUR} of each, for each image's neighbour number {NEIGHBOUR}",
        )
    found = prc_features_to_metric(
        drawn[:n].double(),
        real[:n].double(),
        prc_neighborhood=NEIGHBOUR,
        prc_batch_size=ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def score(logits: Tensor, splits: int) -> float:
    """exp of the mean divergence of each image's classes [n, K] from all images' (Salimans et al. 2016, IS).

    The mean over `splits` consecutive parts. Raises HarnessError for fewer images than parts.
    """
    if len(logits) < splits:
        raise HarnessError(f"a score over {splits} splits of {len(logits)} images", "at least one image in each")
    return isc_features_to_metric(logits, splits, shuffle=False)[KEY_METRIC_ISC_MEAN]


def expected(of: Statistics, n: int, m: int) -> float:
    """The Frechet distance between n and m independent draws of Gaussian features with this covariance, about.

    To second order in 1/n: of the means trace / n, of the covariances half the sum over pairs of eigenvalues of
    l_i l_j (1 + [i = j]) / (l_i + l_j) / n, from the Bures distance of a perturbed matrix; and the same for m.
    """
    values = torch.linalg.eigvalsh(of.covariance).clamp(min=0)
    pairs = torch.outer(values, values)
    pairs = pairs + pairs.diagonal().diag()
    sums = values[:, None] + values[None, :]
    covariances = 0.5 * (pairs / sums.clamp(min=torch.finfo(sums.dtype).tiny)).sum()
    return (values.sum() + covariances).item() * (1 / n + 1 / m)
