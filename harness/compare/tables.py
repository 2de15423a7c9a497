"""A comparison as tables: price to target, speed-up, area under the curve, equal cost, profile, budgets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise, product

from harness.compare.races import AXES, Axis, Entrant, Race, workloads
from harness.compare.ratios import MOST, Profile, Ratio, profile, speedup
from harness.difference import Measured, difference, ranks
from harness.report import format as fmt
from harness.report.layout import Cell, Column, Row, Section, Table, hoist_notes
from harness.report.tables import ABSENT, BY_RATIO
from harness.report.targets import SIGNS, priced
from harness.stats import mean_interval

SHARES = (0.25, 0.5, 1.0)  # of the cost that every run reached
CHOSEN = (0.5, 0.75, 1.0)  # default targets, of the way from the best untrained network to the weakest end, or so
TAUS = (1.0, 1.1, 1.5, 2.0, MOST)
OVER = f"± is the half-width of the 95 % t-interval over seeds. {ABSENT}"
SOURCES = {
    "snapshots": "Curves: quick evals of one run's snapshots, on held-out train; at the early ones the rate is still "
    "high.",
    "ladder": "Curves: each budget is a run of its own, annealed to its end, by its full eval; before the first, its "
    "untrained network.",
}
NAMED = "The targets were named in advance."
READ_OFF = (
    "The targets were chosen from these curves (50, 75 and 100 % of the way from the best untrained network to the "
    "weakest end, or where that is no better to the middle one): for a claim, name them in advance (--target)."
)
PRICE = "What a run had spent when it first reached the target, interpolated linearly; inf: never."
SPEEDUP = (
    "The other's price over its own, paired by seed: the geometric mean, and the 95 % interval of its logarithm by t "
    "over seeds. Above 1, {first} was faster; bold where the interval leaves out 1."
)
AREA = (
    "Mean quality from the cost at which every curve has begun (nothing spent, where the untrained networks were "
    "measured and need no preparation) to that which every run reached."
)
EQUAL_COST = (
    "Quality at equal cost, interpolated linearly: at shares of the cost that every run reached; — before a curve "
    "begins."
)
NO_TARGETS = (
    "No price to target, speed-up or profile: the middle method ends no better than the best untrained network. Name "
    "targets with --target."
)
POINTS = "One point a curve: no area, and no quality at equal cost."
BEST = "Bold (on a terminal *): told apart from the next at 95 % by its note's test."
PROFILE = (
    "The share of the workloads (a target on a data set, size and budget) on which a method pays at most so many times "
    f"the least price; the score is the area under it from 1 to {MOST:g}, 1 at best (AlgoPerf's rule). Prices are "
    "medians over seeds, infinite where a target was never reached. Left out is what nobody reached, or an untrained "
    "network did."
)
BUDGETS = (
    "Ranks at each budget: the places that a method may have, each pair compared at 95 % by t over seeds. Under the "
    "table, where the means of two methods cross between budgets, on a logarithmic scale of device time."
)

Targets = Mapping[str, Sequence[float]]  # by a race's heading


def build(races: Sequence[Race], targets: Targets, chosen: bool) -> list[Table]:
    """All tables. `chosen`: the targets were read off these curves, not named in advance."""
    source, how = SOURCES[races[0].source], READ_OFF if chosen else NAMED
    first = races[0].entrants[0].name
    tables = [
        Table("Price to target", f"{PRICE} {how} {source} {BY_RATIO} {ABSENT}", _each(races, targets, _prices)),
        Table(f"Speed-up of {first}", SPEEDUP.format(first=first), _each(races, targets, _speedups)),
        Table("Area under the curve", f"{AREA} {source} {OVER}", tuple(filter(None, map(_areas, races)))),
        Table("Equal cost", f"{EQUAL_COST} {source} {OVER}", tuple(_equal_cost(race) for race in races if race.lines)),
    ]
    tables += _profiles(races, targets)
    tables += [_budgets(races)] if races[0].source == "ladder" else []
    return [table for table in tables if table.sections]


def default_targets(race: Race) -> tuple[float, ...]:
    """Three qualities that no untrained network has, and that every method reached in the mean, or where there are none
    such the better half of them; none where the middle method is no better than the best untrained network."""
    pick, sign = (max, 1) if race.better == "higher" else (min, -1)
    start = pick(race.untrained() or race.means(0))
    ends = sorted(race.means(-1), key=lambda end: sign * end)
    above = [end for end in (ends[0], ends[(len(ends) - 1) // 2]) if sign * (end - start) > 0]
    return tuple(round(start + share * (above[0] - start), race.digits + 1) for share in CHOSEN) if above else ()


def _each(
    races: Sequence[Race], targets: Targets, make: Callable[[Race, Sequence[float]], Section]
) -> tuple[Section, ...]:
    return tuple(make(race, targets[race.heading]) for race in races if targets[race.heading])


def _known(race: Race) -> list[Axis]:
    """The axes that every run can be read by; time and device time are one where every run had one device."""
    found = [axis for axis in AXES.values() if race.common(axis) is not None]
    names = {axis.name for axis in found}
    same = {"time", "gpu-h"} <= names and all(
        math.isclose(point.at.wall_s, point.at.device_s)
        for entrant in race.entrants for points in entrant.curves.values() for point in points
    )  # fmt: skip
    return [axis for axis in found if not (same and axis.name == "time")]


def _section(race: Race, columns: Iterable[Column], rows: Iterable[Sequence[Cell]], remarks: Sequence[str] = ()):
    head = (Column("method", numeric=False), *columns)
    made = tuple(Row("method", tuple(row)) for row in rows)
    return hoist_notes(Section(race.heading, race.said, head, made, (*race.remarks, *remarks)))


# -- price, speed-up --------------------------------------------------------------------------------------------------


def _prices(race: Race, targets: Sequence[float]) -> Section:
    columns, rows = [Column(_goal(race), numeric=False), Column("seeds")], _by_target(race.entrants, targets, race)
    for row, (_, e) in zip(rows, product(targets, race.entrants), strict=True):
        row.append(Cell(str(len(e.curves))))
    for axis in _known(race):
        found = [(e, target, e.prices(axis, race.better, target)) for target in targets for e in race.entrants]
        unit = fmt.time_unit(price for _, _, prices in found for price in prices.values())
        columns.append(Column(axis.title(unit), axis.plain))
        for row, (e, target, prices) in zip(rows, found, strict=True):
            untrained = e.untrained_there(race.better, target)
            row.append(priced(list(prices.values()), partial(axis.show, unit=unit), untrained, len(e.curves)))
    return _section(race, columns, rows, [] if race.lines else [POINTS])


def _speedups(race: Race, targets: Sequence[float]) -> Section:
    first, *others = race.entrants
    columns, rows = [Column(_goal(race), numeric=False)], _by_target(others, targets, race, "over ")
    for axis in _known(race):
        columns.append(Column(f"by {axis.plain}"))
        pairs = ((first, other, target) for target in targets for other in others)
        for row, (mine, theirs, target) in zip(rows, pairs, strict=True):
            prices = [e.prices(axis, race.better, target) for e in (mine, theirs)]
            untrained = any(e.untrained_there(race.better, target) for e in (mine, theirs))
            row.append(_ratio(speedup(*prices, untrained)))
    return _section(race, columns, rows, [f"{first.name}: {note}." for note in _named([first]).notes])


def _named(entrants: Sequence[Entrant], word: str = "") -> Cell:
    """The name that they share (one, or one of each race), with what is to be known of any of them."""
    return Cell(word + entrants[0].name, notes=tuple(dict.fromkeys(note for e in entrants for note in e.notes)))


def _by_target(entrants: Sequence[Entrant], targets: Sequence[float], race: Race, word: str = "") -> list[list[Cell]]:
    return [
        [_named([entrant], word), Cell(f"{SIGNS[race.better]} {target:g}")]
        for target in targets
        for entrant in entrants
    ]


def _goal(race: Race) -> str:
    return f"{race.metric}, target"


def _ratio(found: Ratio | None) -> Cell:
    if found is None or math.isnan(found.value):
        return Cell(notes=(found.note,) if found and found.note else ())
    if found.low is None or found.high is None:
        return Cell(_times(found.value), f"{found.value:.10g}", notes=(found.note,) if found.note else ())
    text = f"{_times(found.value)} ({_times(found.low)} to {_times(found.high)})"
    note, ends = (found.note,) if found.note else (), (f"{found.low:.10g}", f"{found.high:.10g}")
    return Cell(text, f"{found.value:.10g}", ends=ends, notes=note, best=found.low > 1 or found.high < 1)


def _times(value: float) -> str:
    return fmt.significant(value) if value < 100 or math.isinf(value) else fmt.count(value)


# -- area, equal cost -------------------------------------------------------------------------------------------------


def _areas(race: Race) -> Section | None:
    """None where no curves are known side by side on any axis."""
    columns, rows = [], [[_named([entrant])] for entrant in race.entrants]
    for axis in _known(race):
        first, cost = race.first(axis), race.common(axis)
        if not race.lines or not first < cost:
            continue
        unit = fmt.time_unit([cost])
        span = f"from {axis.show(first, unit)} to" if first else "to"
        columns.append(Column(f"mean {race.metric}, {span} {axis.amount.format(axis.show(cost, unit), unit)}"))
        _fill(rows, race, [entrant.areas(axis, first, cost) for entrant in race.entrants])
    return _section(race, columns, rows, [BEST]) if columns else None


def _equal_cost(race: Race) -> Section:
    rows = [[_named([e]), Cell(f"{100 * share:g} %")] for share in SHARES for e in race.entrants]
    columns, many = [Column("share of the common cost", numeric=False)], len(race.entrants)
    for axis in _known(race):
        whole = race.common(axis)
        unit = fmt.time_unit([whole])
        columns.append(Column(f"{race.metric}; 100 % is {axis.amount.format(axis.show(whole, unit), unit)}"))
        for i, share in enumerate(SHARES):
            found = [entrant.at_cost(axis, share * whole) for entrant in race.entrants]
            _fill(rows[i * many : (i + 1) * many], race, found)
    return _section(race, columns, rows, [BEST])


def _fill(rows: Sequence[list[Cell]], race: Race, found: Sequence[Mapping[int, float]]) -> None:
    """Add a cell to the row of each entrant, of its values by seed; the best is marked where it can be told apart."""
    leader, note = _leader(race, found)
    for i, (row, values) in enumerate(zip(rows, found, strict=True)):
        cell = _value(list(values.values()), race.digits)
        row.append(replace(cell, notes=(note,), best=True) if i == leader else cell)


def _leader(race: Race, found: Sequence[Mapping[int, float]]) -> tuple[int | None, str]:
    sign = -1 if race.better == "higher" else 1
    known = [i for i, values in enumerate(found) if values and all(map(math.isfinite, values.values()))]
    order = sorted(known, key=lambda i: sign * statistics.fmean(found[i].values()))
    if len(order) < 2:
        return None, ""
    gap = difference(Measured(found[order[0]]), Measured(found[order[1]]))
    if gap is None or not gap.told or sign * gap.mean > 0:  # the seeds that both have may say another thing than all
        return None, ""
    low, high = sorted((abs(gap.low), abs(gap.high)))
    shown = [fmt.fixed(value, race.digits) for value in (abs(gap.mean), low, high)]
    next_one = race.entrants[order[1]].name
    return order[0], f"ahead of {next_one} by {shown[0]} ({shown[1]} to {shown[2]}): {gap.test}"


# -- profile, budgets -------------------------------------------------------------------------------------------------


def _profiles(races: Sequence[Race], targets: Targets) -> list[Table]:
    sections = []
    for axis in AXES.values():
        known = [race for race in races if race.common(axis) is not None]
        found = profile(workloads(known, targets, axis))
        if found.ratios and axis.name != "time":
            sections.append(_profile(found, axis, [entrant for race in known for entrant in race.entrants]))
    return [Table("Performance profile", PROFILE, tuple(sections))]


def _profile(found: Profile, axis: Axis, entrants: Sequence[Entrant]) -> Section:
    columns = [Column("method", numeric=False), *(Column(f"≤ {tau:g} times, %") for tau in TAUS), Column("score")]
    rows = []
    for name in sorted(found.ratios, key=lambda name: -found.score(name)):
        shares = [Cell(fmt.fixed(100 * found.share(name, tau), 0)) for tau in TAUS]
        who = _named([entrant for entrant in entrants if entrant.name == name])
        rows.append(Row("method", (who, *shares, Cell(fmt.fixed(found.score(name), 3)))))
    return Section(f"by {axis.plain}", found.said(), tuple(columns), tuple(rows))


def _budgets(races: Sequence[Race]) -> Table:
    return Table("Budgets", BUDGETS, tuple(_ladder(race) for race in races))


def _ladder(race: Race) -> Section:
    rows, columns = [[_named([entrant])] for entrant in race.entrants], []
    for budget in race.budgets:
        here = [entrant.rungs.get(budget, {}) for entrant in race.entrants]
        if not any(here):
            continue
        columns += [Column(f"{race.metric} at {budget}"), Column(f"rank at {budget}")]
        present = [i for i, rung in enumerate(here) if rung]
        measured = [Measured({seed: point.value for seed, point in here[i].items()}) for i in present]
        placed = dict(zip(present, ranks(measured, race.better == "higher"), strict=True))
        for i, row in enumerate(rows):
            values = [point.value for point in here[i].values()]
            row += [
                _value(values, race.digits),
                Cell("–".join(dict.fromkeys(map(str, placed[i])))) if i in placed else Cell(),
            ]
    return _section(race, columns, rows, list(_crossings(race)))


def _value(values: Sequence[float], digits: int) -> Cell:
    if not values:
        return Cell()
    mean, half = mean_interval(values)
    shown = [fmt.fixed(value, digits) for value in (mean, *([] if half is None else [half]))]
    return Cell(" ± ".join(shown), shown[0], shown[1] if half is not None else None)


def _crossings(race: Race) -> Iterable[str]:
    """Where the mean of one method overtakes another's from one budget to the next that both have."""
    means = [_mean_rungs(entrant) for entrant in race.entrants]
    for i, one in enumerate(means):
        for j, other in enumerate(means[:i]):
            both = [(one[budget], other[budget]) for budget in race.budgets if budget in one and budget in other]
            for (cost, gap), (next_cost, next_gap) in pairwise(
                [(math.sqrt(a[0] * b[0]), a[1] - b[1]) for a, b in both]
            ):
                if gap * next_gap < 0 < min(cost, next_cost):
                    way = gap / (gap - next_gap)
                    at = cost * (next_cost / cost) ** way
                    names = race.entrants[i].name, race.entrants[j].name
                    rises = next_gap > 0 if race.better == "higher" else next_gap < 0
                    ahead, behind = names if rises else names[::-1]
                    unit = fmt.time_unit([at])
                    yield f"{ahead} overtakes {behind} at about {fmt.duration(at, unit)} {unit} of device time."


def _mean_rungs(entrant: Entrant) -> dict[str, tuple[float, float]]:
    """Mean device time and mean quality over seeds, by budget."""
    return {
        budget: (
            statistics.fmean(point.at.device_s for point in rung.values()),
            statistics.fmean(point.value for point in rung.values()),
        )
        for budget, rung in entrant.rungs.items()
    }
