"""Races: methods on one data set, size and budget, with a curve of quality against cost for every seed.

A curve is made of the snapshots of one run (its rate is still high at the early ones), or of a ladder of budgets, each
with a run of its own that was annealed to its end (card evaluation, section 8, "Matched budgets").
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from harness.compare.ratios import Workload
from harness.errors import HarnessError, unknown
from harness.records import RunRecord, Spend
from harness.report import format as fmt
from harness.report.curves import (
    Point,
    begins,
    conditions,
    curve,
    joules,
    mean_quality,
    number,
    reached,
    untrained_reached,
    value_at,
)
from harness.report.lines import state
from harness.report.sections import (
    Conditions,
    Group,
    Trial,
    describe,
    differences,
    label,
    mark,
    name_apart,
    of_eval,
    of_run,
    split,
)

Source = Literal["snapshots", "ladder"]
BESIDE = " / "  # between the budgets of a ladder, in its heading


class Priced(Spend):
    """The meter with energy; nan where the run's is not known."""

    joules: float = math.nan


@dataclass(frozen=True)
class Axis:
    """One way to count cost."""

    name: str
    title: Callable[[str], str]  # of the unit of time of a column
    plain: str
    of: Callable[[Spend], float]
    show: Callable[[float, str], str]
    amount: str  # how one is said: {} of its unit


def _counted(value: float, unit: str) -> str:
    return fmt.count(value)


AXES = {
    axis.name: axis
    for axis in (
        Axis("time", lambda unit: f"time, {unit}", "time, s", lambda at: at.wall_s, fmt.duration, "{} {}"),
        Axis(
            "gpu-h",
            lambda unit: f"device time, {unit}",
            "device s",
            lambda at: at.device_s,
            fmt.duration,
            "{} {} of device time",
        ),
        Axis("flop", lambda unit: "FLOP", "FLOP", lambda at: at.flop, _counted, "{} FLOP"),
        Axis("energy", lambda unit: "energy, J", "J", lambda at: at.joules, _counted, "{} J"),
        Axis("img", lambda unit: "images", "images", lambda at: at.img, _counted, "{} images"),
    )
}


@dataclass
class Entrant:
    """A method's row in a race."""

    name: str
    method: str
    curves: dict[int, list[Point]] = field(default_factory=dict)  # by seed
    rungs: dict[str, dict[int, Point]] = field(default_factory=dict)  # of a ladder: by budget, by seed
    notes: list[str] = field(default_factory=list)

    def prices(self, axis: Axis, better: str, target: float) -> dict[int, float]:
        """What reaching the target cost, by seed; infinite where a run never did, nan where its curve began there."""
        found = {seed: reached(points, better, target) for seed, points in self.curves.items()}
        return {seed: axis.of(at) if math.isfinite(at.flop) else at.flop for seed, at in found.items() if at}

    def untrained_there(self, better: str, target: float) -> int:
        """Of how many seeds the untrained network is at the target already."""
        return sum(untrained_reached(points, better, target) for points in self.curves.values())

    def at_cost(self, axis: Axis, cost: float) -> dict[int, float]:
        """The quality at that cost, by seed; none where the curve of a seed begins later."""
        found = {seed: value_at(points, cost, axis.of) for seed, points in self.curves.items()}
        return {} if None in found.values() else found

    def areas(self, axis: Axis, first: float, cost: float) -> dict[int, float]:
        """The mean quality from the one cost to the other, by seed."""
        return {seed: mean_quality(points, first, cost, axis.of) for seed, points in self.curves.items()}

    def starts(self, axis: Axis) -> list[float]:
        return [begins(points, axis.of) for points in self.curves.values()]

    def ends(self, axis: Axis) -> list[float]:
        return [axis.of(points[-1].at) for points in self.curves.values()]


@dataclass
class Race:
    heading: str
    said: str  # conditions
    metric: str  # the number's title
    better: str
    entrants: list[Entrant]
    source: Source
    digits: int = 1
    remarks: list[str] = field(default_factory=list)
    budgets: tuple[str, ...] = ()  # from the smallest; several of a ladder
    of: tuple[str, str] = ("", "")  # data set and size

    def common(self, axis: Axis) -> float | None:
        """The largest cost that every run reached; None where it is not known of every run."""
        ends = [end for entrant in self.entrants for end in entrant.ends(axis)]
        least = min(ends, default=math.nan)
        return None if any(map(math.isnan, ends)) or not least > 0 else least

    def first(self, axis: Axis) -> float:
        """The cost from which on every curve is known."""
        return max(start for entrant in self.entrants for start in entrant.starts(axis))

    @property
    def lines(self) -> bool:
        """Whether every curve has more than a point: between points quality is interpolated, beyond them unknown."""
        return all(len(points) > 1 for entrant in self.entrants for points in entrant.curves.values())

    def untrained_there(self, target: float) -> bool:
        """Whether any seed's untrained network is at the target: then its price is no price of training."""
        return any(entrant.untrained_there(self.better, target) for entrant in self.entrants)

    def untrained(self) -> list[float]:
        """The qualities of all untrained networks."""
        curves = [points for entrant in self.entrants for points in entrant.curves.values()]
        return [points[0].value for points in curves if points[0].untrained]

    def means(self, which: int) -> list[float]:
        """Of each entrant, the mean over seeds of the first (0) or last (-1) point."""
        return [statistics.fmean(points[which].value for points in e.curves.values()) for e in self.entrants]


def workloads(found: Sequence[Race], targets: Mapping[str, Sequence[float]], axis: Axis) -> list[Workload]:
    """Each target of each race, by its heading, with the median price over seeds of every entrant."""
    return [
        Workload(
            {e.name: _median(e.prices(axis, race.better, target).values()) for e in race.entrants},
            race.untrained_there(target),
        )
        for race in found
        for target in targets[race.heading]
    ]


def _median(prices: Collection[float]) -> float:
    """nan where one of them is: it has no place among the others."""
    return math.nan if any(map(math.isnan, prices)) else statistics.median(prices)


def races(
    trials: Sequence[Trial], methods: Sequence[str], metric: str, source: str | None, titles: Mapping[str, str]
) -> list[Race]:
    """Every race that two of `methods` are in, by `metric`: the name of an eval (its first number) or of a number.

    `source` None: snapshots where they have the metric, else the ladder. Raises HarnessError where there is no race.
    """
    known = sorted({trial.run.cell.method for trial in trials})
    for name in methods:
        if name not in known:
            raise unknown("method", name, known, "of the studies that are compared; --study names others")
    mine = [trial for trial in trials if trial.run.cell.method in methods]
    quick = any(number(record, metric) for trial in mine for record in trial.evals if record.cheap)
    source = source or ("snapshots" if quick else "ladder")
    found = _of_snapshots(mine, metric, titles) if source == "snapshots" else _of_ladder(mine, metric, titles)
    every = list(found)
    found = [race for race in every if len({entrant.method for entrant in race.entrants}) > 1]
    if not found:
        raise _no_race(mine, metric, source)
    for race in every:
        if race not in found:
            _say_alone(race, [other for other in found if other.of == race.of] or found[:1])
    return found


def _say_alone(race: Race, others: Sequence[Race]) -> None:
    """What has no rival under its conditions is named where its rivals are."""
    for other in others:
        for entrant in race.entrants:
            seeds = ", ".join(map(str, sorted(entrant.curves)))
            other.remarks.append(f"{entrant.name}, seed {seeds}: in no race, alone under {race.heading}.")


def _of_snapshots(trials: Sequence[Trial], metric: str, titles: Mapping[str, str]) -> Iterable[Race]:
    for group in split(trials, lambda trial: conditions(trial, [metric]) | of_run(trial.run)):
        race = _opened(group, "snapshots")
        for seeds in group.methods():
            entrant = _entrant(seeds, group, titles)
            for trial in seeds:
                points, better = curve(trial, metric, group.conditions) if trial.finished else ([], race.better)
                if points:
                    race.better = better
                    _enter(entrant, trial, [_priced(trial.run, point) for point in points])
                else:
                    race.remarks.append(
                        f"{entrant.name}, seed {trial.run.cell.seed}: {_absent(trial, 'no quick evals')}"
                    )
            race.entrants += [entrant] if entrant.curves else []
        _describe(race, group, [r for t in group.trials for r in t.evals if r.cheap], metric)
        yield race


def _of_ladder(trials: Sequence[Trial], metric: str, titles: Mapping[str, str]) -> Iterable[Race]:
    """The points of a seed are the ends of its runs, each of another budget, after the untrained network."""
    for group in _ladders(split(trials, lambda trial: _full(trial, metric) | of_run(trial.run))):
        race = _opened(group, "ladder")
        for runs in group.methods():
            entrant = _entrant(runs, group, titles)
            _climb(entrant, runs, metric, race)
            race.entrants += [entrant] if entrant.curves else []
        _describe(race, group, [r for t in group.trials for r in t.final.values()], metric)
        yield race


def _ladders(groups: Sequence[Group]) -> list[Group]:
    """Groups that differ in the budget only, joined: the budget of a ladder is all of theirs, from the smallest on."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        ladders = found.setdefault((group.dataset, group.size), [])
        fitting = [ladder for ladder in ladders if not differences(group.conditions, ladder.conditions)]
        if fitting:
            fitting[0].budget += BESIDE + group.budget
            fitting[0].conditions.update(group.conditions)
            fitting[0].trials += group.trials
        else:
            ladders.append(Group(group.dataset, group.size, group.budget, {**group.conditions}, [*group.trials]))
    for ladders in found.values():
        name_apart(ladders)
    return [ladder for ladders in found.values() for ladder in ladders]


def _climb(entrant: Entrant, runs: Sequence[Trial], metric: str, race: Race) -> None:
    """Set the entrant's rungs, and its curves through them."""
    starts: dict[int, Point] = {}
    for trial in runs:
        cell = trial.run.cell
        ends = [n for r in trial.final.values() if (n := number(r, metric))]
        if not trial.finished or not ends:
            why = _absent(trial, "not evaluated")
            race.remarks.append(f"{entrant.name}, {cell.budget}, seed {cell.seed}: {why}")
            continue
        race.better = ends[0].better
        rung = entrant.rungs.setdefault(cell.budget, {})
        if cell.seed in rung:
            entrant.notes.append(f"several runs of seed {cell.seed} at {cell.budget}: the last one counts")
        rung[cell.seed] = _priced(trial.run, Point(ends[0].value, trial.run.spend))
        for untrained in (n for r in trial.untrained.values() if (n := number(r, metric))):
            prepared = trial.run.snapshots.get("0.0000", Spend())  # a VAE, for one, is paid for by then
            starts.setdefault(cell.seed, _priced(trial.run, Point(untrained.value, prepared, untrained=True)))
    rungs = Counter(seed for rung in entrant.rungs.values() for seed in rung)
    for rung in entrant.rungs.values():
        for seed, point in rung.items():
            # Of one budget there is no curve: what lies between the untrained network and its end, no run has shown.
            begun = [starts[seed]] if seed in starts and rungs[seed] > 1 else []
            entrant.curves.setdefault(seed, begun).append(point)
    for points in entrant.curves.values():
        points.sort(key=lambda point: point.at.device_s)


def _full(trial: Trial, metric: str) -> Conditions:
    found: Conditions = {}
    for record in trial.final.values():
        wanted = number(record, metric)
        found |= of_eval(record, wanted.table) if wanted else {}
    return found


def _opened(group: Group, source: Source) -> Race:
    budgets = tuple(group.budget.split(BESIDE))
    return Race(group.heading, "", "", "higher", [], source, budgets=budgets, of=(group.dataset, group.size))


def _entrant(seeds: Sequence[Trial], group: Group, titles: Mapping[str, str]) -> Entrant:
    return Entrant(label(seeds[0], group, titles) + mark(seeds[0].run), seeds[0].run.cell.method)


def _enter(entrant: Entrant, trial: Trial, points: list[Point]) -> None:
    seed = trial.run.cell.seed
    if seed in entrant.curves:
        entrant.notes.append(f"several runs of seed {seed}: the last one counts")
    entrant.curves[seed] = points


def _priced(run: RunRecord, point: Point) -> Point:
    spent = joules(run, point.at)
    return point._replace(at=Priced(**point.at.model_dump(), joules=math.nan if spent is None else spent))


def _describe(race: Race, group: Group, records: Iterable, metric: str) -> None:
    stated = [key for key in sorted(group.conditions) if key[0] not in ("n", "settings")]
    race.said = "; ".join(describe(key, group.conditions[key]) for key in stated)
    found = [n for record in records if (n := number(record, metric))]
    if found:
        race.metric, race.digits = found[0].title, max(n.digits for n in found)


def _absent(trial: Trial, finished: str) -> str:
    """Why a run takes no part; `finished` is what one that is finished lacks."""
    return finished if trial.finished else state(trial)


def _no_race(trials: Sequence[Trial], metric: str, source: Source) -> HarnessError:
    which = (lambda record: record.cheap) if source == "snapshots" else (lambda record: not record.cheap)
    known = {name for t in trials for r in t.evals if which(r) for name in (r.eval, *r.numbers)}
    if metric not in known:
        return unknown("metric", metric, known, "--metric takes an eval or a number of the records")
    return HarnessError(
        f"no two of these methods have {metric} under equal conditions",
        "runs on one data set, of one size and budget, on one kind of device",
        "python -m harness table STUDY shows which rows may be compared",
    )
