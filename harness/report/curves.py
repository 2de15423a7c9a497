"""Quality against cost: the quick evals of one run's snapshots, each with the meter at that moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from harness.records import EvalRecord, Number, RunRecord, Spend
from harness.report.sections import Conditions, Trial, differences, of_eval

NEVER = Spend(device_s=math.inf, wall_s=math.inf, flop=math.inf, img=math.inf)
TRIFLE = 0.01  # of a curve's cost: a preparation that takes less is none
BEFORE = Spend(device_s=math.nan, wall_s=math.nan, flop=math.nan, img=math.nan)


class Point(NamedTuple):
    """A quality, and what had been spent by then."""

    value: float
    at: Spend
    untrained: bool = False  # nothing of the method is trained yet, whatever its preparation has cost


def number(record: EvalRecord, name: str) -> Number | None:
    """The number of that name: an eval's first one by the eval's name, any by its key."""
    if record.eval == name:
        return next(iter(record.numbers.values()), None)
    return record.numbers.get(name)


def conditions(trial: Trial, names: Sequence[str]) -> Conditions:
    """Those of the newest quick evals that give these numbers."""
    found: Conditions = {}
    for record in reversed(trial.evals):  # the newest is last, and counts
        for name in names:
            wanted = number(record, name) if record.cheap else None
            if wanted:
                found = of_eval(record, wanted.table) | found
    return found


def curve(trial: Trial, name: str, agreed: Conditions) -> tuple[list[Point], str]:
    """The run's points by share of the budget, and which way is better; none where nothing agrees with `agreed`."""
    found: dict[str, Point] = {}
    better = "higher"
    for record in trial.evals:
        wanted = number(record, name) if record.cheap and record.share is not None else None
        at = trial.run.snapshots.get(f"{record.share:.4f}") if wanted else None
        if wanted and at and not differences(of_eval(record, wanted.table), agreed):
            found[f"{record.share:.4f}"], better = Point(wanted.value, at, record.share == 0), wanted.better
    return [point for _, point in sorted(found.items())], better


def reached(points: Sequence[Point], better: str, target: float) -> Spend | None:
    """The meter where the curve first crosses the target, interpolated linearly; NEVER, or None without a curve.

    BEFORE where its first point is of a trained network that is there already: nobody knows since when.
    """
    if not points:
        return None
    gaps = [_beyond(point, better, target) for point in points]
    if gaps[0] >= 0:
        return points[0].at if points[0].untrained else BEFORE
    for (below, before), (above, after) in pairwise(zip(gaps, points, strict=True)):
        if above >= 0:
            return between(before.at, after.at, below / (below - above))
    return NEVER


def untrained_reached(points: Sequence[Point], better: str, target: float) -> bool:
    """Whether the curve begins with an untrained network that is at the target already."""
    return bool(points) and points[0].untrained and _beyond(points[0], better, target) >= 0


def _beyond(point: Point, better: str, target: float) -> float:
    return (1 if better == "higher" else -1) * (point.value - target)


def between(before: Spend, after: Spend, way: float) -> Spend:
    """The meter at `way` in [0, 1] from one point to the next."""
    pairs = zip(before.model_dump().items(), after.model_dump().values(), strict=True)
    return type(before)(**{name: low + way * (high - low) for (name, low), high in pairs})


def begins(points: Sequence[Point], of: Callable[[Spend], float]) -> float:
    """The cost from which on the curve's quality is known: an untrained network has its own from the start, unless
    what it rests on (a tokenizer that is trained first, say) had to be paid for."""
    first = of(points[0].at)
    return 0.0 if points[0].untrained and first <= TRIFLE * of(points[-1].at) else first


def value_at(points: Sequence[Point], cost: float, of: Callable[[Spend], float]) -> float | None:
    """The quality at that cost, interpolated linearly; after the last point that of the last, None before the first."""
    if cost < begins(points, of):
        return None
    if cost <= of(points[0].at):
        return points[0].value
    for before, after in pairwise(points):
        low, high = of(before.at), of(after.at)
        if cost <= high and high > low:
            return before.value + (after.value - before.value) * (cost - low) / (high - low)
    return points[-1].value


def mean_quality(points: Sequence[Point], first: float, cost: float, of: Callable[[Spend], float]) -> float:
    """The area under the curve from the cost `first` to `cost`, by their distance: in the quality's own unit.

    The curve is to be known from `first` on (`begins`).
    """
    inner = sorted({c for point in points if first < (c := of(point.at)) < cost})
    grid = [first, *inner, cost]
    heights = [value_at(points, c, of) for c in grid]
    area = sum((b - a) * (p + q) / 2 for (a, p), (b, q) in pairwise(zip(grid, heights, strict=True)))
    return area / (cost - first)


def joules(run: RunRecord, at: Spend) -> float | None:
    """Energy up to there: the run's own total in proportion to device time, which is how it is drawn in training."""
    total = run.cost.energy_j if run.cost else None
    if total is None or not run.spend.device_s:
        return None
    return total * at.device_s / run.spend.device_s
