"""Speed-ups with their intervals, and AlgoPerf's profile of methods over many targets (card evaluation, section 8)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from harness.stats import mean_interval

MOST = 4.0  # the profile's largest ratio to the best, as AlgoPerf has it


@dataclass(frozen=True)
class Ratio:
    """How many times as much the other paid, with a 95 % interval where every seed of both got there."""

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


def speedup(mine: Mapping[Hashable, float], theirs: Mapping[Hashable, float]) -> Ratio | None:
    """Their price over mine, paired by seed: the geometric mean, and the t-interval of its logarithm.

    A price that was never paid up is infinite: then the ratio of the medians, without an interval. None where neither
    ever got there, or nothing was measured of one.
    """
    if not mine or not theirs:
        return None
    seeds = [seed for seed in mine if seed in theirs]
    if any(map(math.isnan, [*mine.values(), *theirs.values()])):
        return None
    if seeds and all(math.isfinite(p) and p > 0 for seed in seeds for p in (mine[seed], theirs[seed])):
        mean, half = mean_interval([math.log(theirs[seed] / mine[seed]) for seed in seeds])
        if half is None:
            return Ratio(math.exp(mean))
        return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))
    above, below = (statistics.median(prices.values()) for prices in (theirs, mine))
    if 0 in (above, below):
        return Ratio(math.nan, note="reached by an untrained network")
    if math.isinf(above) and math.isinf(below):
        return None
    counts = [sum(map(math.isfinite, prices.values())) for prices in (mine, theirs)]
    note = (
        f"ratio of medians: reached by {counts[0]} of {len(mine)} seeds, by {counts[1]} of {len(theirs)} of the other's"
    )
    return Ratio(above / below, note=note)


@dataclass(frozen=True)
class Profile:
    """For each method the share of the workloads on which it pays at most so many times the least price."""

    ratios: Mapping[str, tuple[float, ...]]  # to the best, by workload; infinite where it never got there

    def share(self, name: str, most: float) -> float:
        return sum(ratio <= most for ratio in self.ratios[name]) / len(self.ratios[name])

    def score(self, name: str) -> float:
        """The area under the profile from 1 to MOST, between 0 and 1."""
        return statistics.fmean(max(0.0, MOST - ratio) / (MOST - 1) for ratio in self.ratios[name])


def profile(workloads: Sequence[Mapping[str, float]]) -> Profile:
    """Of the price of each method on each workload (a target on a data set); one that is absent never got there.

    A workload that no method did, or that an untrained network had done already, says nothing and is left out.
    """
    names = list(dict.fromkeys(name for prices in workloads for name in prices))
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for prices in workloads:
        least = min(prices.values())
        if not math.isfinite(least) or least <= 0:
            continue
        for name in names:
            ratios[name].append(prices.get(name, math.inf) / least)
    return Profile({name: tuple(found) for name, found in ratios.items() if found})
