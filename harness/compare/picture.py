"""The picture of a comparison: curves with their targets, and the performance profile; PNG and SVG, equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.compare.races import AXES, Axis, Race, workloads
from harness.compare.ratios import MOST, profile
from harness.errors import unknown
from harness.report import format as fmt
from harness.report.figure import DASHES, panels, save
from harness.stats import mean_interval

GRID = 60  # points of a drawn curve


def drawable(races: Sequence[Race], axis: str) -> list[Race]:
    """The races whose runs all know the axis. Raises HarnessError where none does."""
    known = [race for race in races if axis in AXES and race.common(AXES[axis]) is not None]
    if not known:
        raise unknown("axis", axis, [a.name for a in AXES.values() if any(r.common(a) for r in races)], "--axis flop")
    return known


def draw(races: Sequence[Race], targets: Mapping[str, Sequence[float]], axis: str, folder: Path) -> list[Path]:
    """`compare.png` and `compare.svg` of `races` that know the axis."""
    known = drawable(races, axis)
    figure, places = panels(len(known) + 1, height=3.6)
    names = list(dict.fromkeys(entrant.name for race in known for entrant in race.entrants))
    looks = {name: (f"C{i}", DASHES[i % len(DASHES)]) for i, name in enumerate(names)}
    for place, race in zip(places, known, strict=False):
        _curves(place, race, targets[race.heading], AXES[axis], looks)
    _profile(places[len(known)], known, targets, AXES[axis], looks)
    handles = [places[0].plot([], [], color=color, linestyle=dash)[0] for color, dash in looks.values()]
    figure.legend(handles, list(looks), loc="outside lower center", ncols=min(6, len(looks)), fontsize=9)
    return [save(figure, folder / f"compare.{form}") for form in ("png", "svg")]


def _curves(place: Any, race: Race, targets: Sequence[float], axis: Axis, looks: Mapping[str, tuple[str, str]]) -> None:
    whole = race.common(axis)
    unit = fmt.time_unit([whole])
    per_unit = fmt.TIME_UNITS[unit] if axis.name in ("time", "gpu-h") else 1.0
    grid = [whole * i / GRID for i in range(GRID + 1)]
    for entrant in race.entrants:
        color, dash = looks[entrant.name]
        known = [(cost, list(values)) for cost in grid if (values := entrant.at_cost(axis, cost).values())]
        if not known:
            continue
        means, halves = zip(*((mean, half or 0.0) for mean, half in (mean_interval(v) for _, v in known)), strict=True)
        xs = [cost / per_unit for cost, _ in known]
        place.plot(xs, means, color=color, linestyle=dash)
        low, high = ([m + sign * h for m, h in zip(means, halves, strict=True)] for sign in (-1, 1))
        place.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
    for target in targets:
        place.axhline(target, color="0.6", linewidth=0.8, linestyle=":")
    place.set_title(race.heading, fontsize=9)
    place.set_xlabel(axis.title(unit))
    place.set_ylabel(f"{race.metric} ({race.better} is better)", fontsize=8)
    place.grid(alpha=0.3)


def _profile(
    place: Any,
    races: Sequence[Race],
    targets: Mapping[str, Sequence[float]],
    axis: Axis,
    looks: Mapping[str, tuple[str, str]],
) -> None:
    found = profile(workloads(races, targets, axis))
    taus = [1 + (MOST - 1) * i / 200 for i in range(201)]
    for name in found.ratios:
        color, dash = looks[name]
        place.step(taus, [100 * found.share(name, tau) for tau in taus], where="post", color=color, linestyle=dash)
    place.set_title(f"performance profile, {found.many} workload{'s' * (found.many != 1)}", fontsize=9)
    place.set_xlabel(f"times the least {axis.plain}")
    place.set_ylabel("workloads, %")
    place.set_ylim(-3, 103)
    place.grid(alpha=0.3)
