"""Speed-ups with their intervals, and AlgoPerf's profile of methods over many targets (card evaluation, section 8)."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.stats import mean_interval

MOST = 4.0  # the profile's largest ratio to the best, as AlgoPerf has it


@dataclass(frozen=True)
class Ratio:
    """How many times as much the other paid, with a 95 % interval where every seed of both got there."""

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


UNTRAINED = "reached by an untrained network"
BEFORE = "reached before the first point of a curve"


def speedup(mine: Mapping[Hashable, float], theirs: Mapping[Hashable, float], untrained: bool = False) -> Ratio | None:
    """Their price over mine, paired by seed: the geometric mean, and the t-interval of its logarithm.

    A price that was never paid up is infinite: then the ratio of the medians, without an interval. None where neither
    ever got there, or nothing was measured of one. A price that is not known (nan) makes no ratio. `untrained`: a
    network of either was there before any training; what that cost is no price of training, so there is no ratio.
    """
    if untrained:
        return Ratio(math.nan, note=UNTRAINED)
    if not mine or not theirs:
        return None
    seeds = [seed for seed in mine if seed in theirs]
    if any(map(math.isnan, [*mine.values(), *theirs.values()])):
        return Ratio(math.nan, note=BEFORE)
    # Also of a seed without a partner: one that never got there is not to be dropped.
    if seeds and all(math.isfinite(p) and p > 0 for p in (*mine.values(), *theirs.values())):
        mean, half = mean_interval([math.log(theirs[seed] / mine[seed]) for seed in seeds])
        alone = len({*mine, *theirs}) - len(seeds)
        note = f"over the {len(seeds)} seeds that both have" if alone else ""
        if half is None:
            return Ratio(math.exp(mean), note=note)
        return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), note)
    above, below = (statistics.median(prices.values()) for prices in (theirs, mine))
    if 0 in (above, below):
        return Ratio(math.nan, note=UNTRAINED)
    if math.isinf(above) and math.isinf(below):
        return None
    counts = [sum(map(math.isfinite, prices.values())) for prices in (mine, theirs)]
    note = (
        f"ratio of medians: reached by {counts[0]} of {len(mine)} seeds, by {counts[1]} of {len(theirs)} of the other's"
    )
    return Ratio(above / below, note=note)


@dataclass(frozen=True)
class Workload:
    """A target on a data set, and what each method that ran there paid for it; infinite: it never got there; nan: it
    was there when its curve began."""

    prices: Mapping[str, float]
    untrained: bool = False  # whether an untrained network is there already


@dataclass(frozen=True)
class Profile:
    """For each method the share of the workloads on which it pays at most so many times the least price."""

    ratios: Mapping[str, tuple[float, ...]]  # to the best, by workload; infinite where it never got there
    left_out: Mapping[str, int] = field(default_factory=dict)  # how many workloads say nothing, by the reason

    @property
    def many(self) -> int:
        return len(next(iter(self.ratios.values()), ()))

    def said(self) -> str:
        """How many workloads, and how many more were left out why."""
        left = [f"{count} more left out: {why}" for why, count in self.left_out.items()]
        return "; ".join([f"{self.many} workload{'s' * (self.many != 1)}", *left])

    def share(self, name: str, most: float) -> float:
        return sum(ratio <= most for ratio in self.ratios[name]) / len(self.ratios[name])

    def score(self, name: str) -> float:
        """The area under the profile from 1 to MOST, between 0 and 1."""
        return statistics.fmean(max(0.0, MOST - ratio) / (MOST - 1) for ratio in self.ratios[name])


def profile(workloads: Sequence[Workload]) -> Profile:
    """Of workloads on which every method ran. One that nobody did, or an untrained network did, says nothing."""
    names = list(dict.fromkeys(name for workload in workloads for name in workload.prices))
    reasons = [_says_nothing(workload, names) for workload in workloads]
    counted = [workload for workload, why in zip(workloads, reasons, strict=True) if not why]
    ratios = {name: tuple(w.prices[name] / min(w.prices.values()) for w in counted) for name in names}
    return Profile({name: found for name, found in ratios.items() if found}, Counter(filter(None, reasons)))


def _says_nothing(workload: Workload, names: Sequence[str]) -> str:
    """Why the workload ranks nobody; empty for one that does."""
    if any(name not in workload.prices for name in names):
        return "not every method ran there"
    if any(map(math.isnan, workload.prices.values())):
        return BEFORE
    if workload.untrained or min(workload.prices.values()) <= 0:
        return UNTRAINED
    return "" if any(map(math.isfinite, workload.prices.values())) else "reached by nobody"
