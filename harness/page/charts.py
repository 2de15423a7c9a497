"""What the page draws, as plain numbers: recognition against generation, quality against cost, where the time went.

Everything comes from the tables and the anytime points, so that no chart says what no table says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from harness.ledger import ACCOUNTS, CHARGED
from harness.records import RunRecord
from harness.report import anytime
from harness.report import format as fmt
from harness.report.layout import Section, Table
from harness.report.overall import FIRST
from harness.report.results import ARROWS
from harness.report.tables import OVERALL_TITLE, RESULTS, WALL_CLOCK_TITLE

GENERATION = RESULTS["generation"][0]
RECOGNITION = tuple(RESULTS[name][0] for name in ("representation", "finetune", "transfer", "dense"))


@dataclass(frozen=True)
class Spot:
    """A method in a trade: the mean over seeds on each axis, and the half-width of its interval."""

    name: str
    x: float
    x_half: float | None
    y: float
    y_half: float | None


@dataclass(frozen=True)
class Trade:
    """Recognition (x) against generation (y), of rows that may be compared; each spot is of the same runs on both."""

    of: tuple[str, ...]
    heading: str
    x: str
    y: str
    x_better: str
    y_better: str
    spots: tuple[Spot, ...]

    @property
    def front(self) -> tuple[str, ...]:
        """Those that no other beats on one axis without losing on the other, from the best at drawing on."""
        kept = [spot for spot in self.spots if not any(self._beats(other, spot) for other in self.spots)]
        return tuple(spot.name for spot in sorted(kept, key=lambda spot: (self._gains(spot), spot.name)))

    def _gains(self, spot: Spot) -> tuple[float, float]:
        """Both axes with more as better."""
        return (spot.x if self.x_better == "higher" else -spot.x, spot.y if self.y_better == "higher" else -spot.y)

    def _beats(self, one: Spot, other: Spot) -> bool:
        ours, theirs = self._gains(one), self._gains(other)
        return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))


def trades(tables: Sequence[Table]) -> list[Trade]:
    """Every number of recognition against every number of generation of the same data set, size and budget.

    Those that stand for their tables in the overall one come first.
    """
    drawn = [section for table in tables if table.title == GENERATION for section in table.sections]
    found = []
    for table in (table for title in RECOGNITION for table in tables if table.title == title):
        for known, draws in product(table.sections, drawn):
            if known.of == draws.of:
                found += _pairs(known, draws)
    first = {
        column.plain or column.title
        for t in tables
        if t.title == OVERALL_TITLE
        for s in t.sections
        for column in s.columns
    }
    return sorted(found, key=lambda trade: (trade.x not in first) + (trade.y not in first))


def _pairs(known: Section, draws: Section) -> Iterable[Trade]:
    heading = known.heading if known.heading == draws.heading else f"{known.heading}; {draws.heading}"
    for i, j in product(_numbers(known), _numbers(draws)):
        xs, ys = _values(known, i), _values(draws, j)
        both = [name for name in xs if name in ys and xs[name][0] == ys[name][0]]
        spots = tuple(Spot(name, *xs[name][1], *ys[name][1]) for name in both)
        if spots:
            x, y = known.columns[i], draws.columns[j]
            names = (x.plain or x.title, y.plain or y.title)
            yield Trade(known.of, heading, *names, _better(x.title), _better(y.title), spots)


def _numbers(section: Section) -> list[int]:
    return [j for j, column in enumerate(section.columns) if column.title.endswith(tuple(ARROWS.values()))]


def _better(title: str) -> str:
    return next(better for better, arrow in ARROWS.items() if title.endswith(arrow))


def _values(section: Section, j: int) -> dict[str, tuple[frozenset[str], tuple[float, float | None]]]:
    """The column's mean and half-width of each method that has them, and the runs that they are of.

    Not of what saw labels in pre-training, which is no rival of the others.
    """
    found = {}
    for row in section.rows:
        runs, cell = [made for made in row.cells[0].records if isinstance(made, RunRecord)], row.cells[j]
        if row.kind != "method" or not cell.plain or any(run.saw_labels for run in runs):
            continue
        value = float(cell.plain), None if cell.half is None else float(cell.half)
        if all(map(math.isfinite, filter(None, value))):
            found[row.cells[0].text] = frozenset(run.key for run in runs), value
    return found


@dataclass(frozen=True)
class Panel:
    """One number of the anytime curves: for each axis what is written below it, and each method's line."""

    of: tuple[str, ...]
    title: str
    better: str
    said: str  # images behind each point
    axes: dict[str, str]
    lines: dict[str, dict[str, list[tuple[float, float, float | None]]]]  # axis -> method -> paid, mean, half-width


def panels(curve: Sequence[anytime.Point]) -> list[Panel]:
    """A panel for each number of each eval, data set, size and budget; those that stand for their tables first."""
    found: dict[tuple[object, ...], list[anytime.Point]] = {}
    for point in curve:
        place = (point.dataset, point.size, point.budget, point.eval, point.protocol, point.title)
        found.setdefault(place, []).append(point)
    first = FIRST["representation"]  # evals, the first of which stands for the table in the overall one
    rank = {name: place for place, name in enumerate(first)}
    order = sorted(found.values(), key=lambda points: rank.get(points[0].eval, len(first)))
    return [_panel(points) for points in order]


def _panel(points: Sequence[anytime.Point]) -> Panel:
    first = points[0]
    unit = fmt.time_unit(p.device_s or 0.0 for p in points)
    lines: dict[str, dict[str, list[tuple[float, float, float | None]]]] = {}
    for axis in anytime.AXES:
        scale = {"gpu-h": fmt.TIME_UNITS[unit], "share": 0.01}.get(axis, 1.0)
        for method in dict.fromkeys(p.method for p in points):
            line = anytime.averaged([p for p in points if p.method == method], axis)
            if line:
                scaled = [(paid / scale, mean, half) for paid, mean, half in line if math.isfinite(mean)]
                lines.setdefault(axis, {})[method] = scaled
    titles = {axis: below.format(unit) for axis, (_, below) in anytime.AXES.items() if axis in lines}
    titles |= {"share": "share of the budget, %"} if "share" in lines else {}
    said = f"{first.eval} protocol {first.protocol}; {first.n:,} images of {first.part} behind each point"
    of = (first.dataset, first.size, first.budget)
    return Panel(of, first.title, first.better, said, titles, lines)


@dataclass(frozen=True)
class Bars:
    """Seconds on each account of the ledger, by method; means over seeds."""

    of: tuple[str, ...]
    heading: str
    unit: str
    charged: tuple[str, ...]
    accounts: tuple[str, ...]  # of which some time was booked, those charged first
    bars: dict[str, tuple[float, ...]]  # in `unit`, in the order of `accounts`


def ledgers(tables: Sequence[Table]) -> list[Bars]:
    made = [_bars(section) for table in tables if table.title == WALL_CLOCK_TITLE for section in table.sections]
    return [bars for bars in made if bars.bars]


def _bars(section: Section) -> Bars:
    at = {column.plain: j for j, column in enumerate(section.columns)}
    booked = {
        row.cells[0].text: {name: float(row.cells[at[f"{name} s"]].plain or 0.0) for name in ACCOUNTS}
        for row in section.rows
        if row.kind in ("method", "unfinished")
    }
    accounts = tuple(name for name in ACCOUNTS if any(seconds[name] > 0 for seconds in booked.values()))
    unit = fmt.time_unit(sum(seconds.values()) for seconds in booked.values())
    bars = {who: tuple(seconds[name] / fmt.TIME_UNITS[unit] for name in accounts) for who, seconds in booked.items()}
    return Bars(section.of, section.heading, unit, tuple(a for a in accounts if a in CHARGED), accounts, bars)
