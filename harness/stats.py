"""Means and their uncertainty, for records and for tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    """The mean of `mean_interval`, without the price of its interval."""
    if all(map(math.isfinite, values)):
        return statistics.fmean(values)
    return math.fsum(values) / len(values) if _one_sign(values) else math.nan


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half-width of its 95 % Student-t interval; no interval for one value.

    Sums are exact, so the order of the values changes no bit.
    """
    middle = mean(values)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return middle, None
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, 0.975))
    return middle, quantile * statistics.stdev(values) / math.sqrt(len(values))


def _one_sign(values: Sequence[float]) -> bool:
    """Whether infinite values point one way, so that their mean is that infinity and not undefined."""
    return not {math.inf, -math.inf} <= set(values)
