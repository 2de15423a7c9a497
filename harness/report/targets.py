"""The price of a quality: device time, FLOP and images until a run's quick evals first reach a target.

A target is set in advance and is the same for every method (AlgoPerf's rule; card evaluation, section 8). Between two
snapshots the price is interpolated linearly; a run that never reaches the target pays infinitely much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from harness.errors import HarnessError, unknown
from harness.records import Spend
from harness.report import format as fmt
from harness.report.curves import conditions, curve, number, reached, untrained_reached
from harness.report.layout import Cell, Column, Row, Section, hoist_notes
from harness.report.lines import notes, seeds_text, state
from harness.report.sections import Conditions, Group, Trial, describe, label, mark, of_run, split
from harness.stats import mean_interval
from harness.study import ALIASES

SIGNS = {"higher": "≥", "lower": "≤"}
EXAMPLE = "--target linear=40,knn=35"


@dataclass(frozen=True)
class Target:
    """A value of an eval's first number, or of the number of that key."""

    name: str
    value: float


@dataclass(frozen=True)
class Price:
    """One column: what of the meter it reads, and how it is shown."""

    get: Callable[[Spend], float]
    title: Callable[[str], str]  # of the unit of time of the column
    plain: str
    show: Callable[[float, str], str]


PRICES = (
    Price(lambda at: at.device_s, lambda unit: f"device time, {unit}", "device s", fmt.duration),
    Price(lambda at: at.flop, lambda unit: "FLOP", "FLOP", lambda value, unit: fmt.count(value)),
    Price(lambda at: at.img, lambda unit: "images", "images", lambda value, unit: fmt.count(value)),
)


def parse(text: str) -> tuple[Target, ...]:
    """`"linear=40,knn=35"` as targets. Raises HarnessError for what is no name and number."""
    found = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = word.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name.strip() or not math.isfinite(value):
            raise HarnessError(f"the target {word!r}", "the name of an eval and a number", EXAMPLE)
        name = name.strip()
        found.append(Target(ALIASES["evals"].get(name, name), value))
    if not found:
        raise HarnessError("no target", "the name of an eval and a number", EXAMPLE)
    return tuple(dict.fromkeys(found))


def sections(trials: Sequence[Trial], targets: Sequence[Target], titles: Mapping[str, str]) -> tuple[Section, ...]:
    """Raises HarnessError for a target that no quick eval has a number for."""
    known = {name: None for t in trials for r in t.evals if r.cheap for name in (r.eval, *r.numbers)}
    if not known:
        raise HarnessError("no snapshots were evaluated", "quick evals of snapshots", "python -m harness eval STUDY")
    for target in targets:
        if target.name not in known:
            raise unknown("target", target.name, known, EXAMPLE)
    groups = split(trials, lambda trial: _conditions(trial, targets))
    return tuple(_section(group, targets, titles) for group in groups)


def _conditions(trial: Trial, targets: Sequence[Target]) -> Conditions:
    """Those of the run and of its newest quick evals that the targets read."""
    return conditions(trial, [target.name for target in targets]) | of_run(trial.run)


class Line(NamedTuple):
    """A row before it has a form: a method with its finished runs, or one run that is not finished."""

    name: str
    seeds: str
    notes: tuple[str, ...]
    done: list[Trial]
    state: str = ""  # what stands in place of numbers


def _section(group: Group, targets: Sequence[Target], titles: Mapping[str, str]) -> Section:
    lines = [line for trials in group.methods() for line in _lines(trials, group, titles)]
    columns = [Column("method", numeric=False), Column("seeds")]
    rows = [[Cell(line.name, notes=line.notes), Cell(line.seeds)] for line in lines]
    for target in targets:
        numbers = [n for t in group.trials for r in t.evals if r.cheap and (n := number(r, target.name))]
        if not numbers:
            continue
        goal = f"{numbers[0].title} {SIGNS[numbers[0].better]} {target.value:g}"
        curves = [[curve(trial, target.name, group.conditions) for trial in line.done] for line in lines]
        spent = [[reached(*found, target.value) for found in seeds] for seeds in curves]
        untrained = [sum(untrained_reached(*found, target.value) for found in seeds) for seeds in curves]
        for price in PRICES:
            unit = fmt.time_unit(price.get(at) for seeds in spent for at in seeds if at)
            columns.append(Column(f"{goal}: {price.title(unit)}", f"{goal}: {price.plain}"))
            for row, line, seeds, many in zip(rows, lines, spent, untrained, strict=True):
                known = [price.get(at) for at in seeds if at]
                cell = priced(known, partial(price.show, unit=unit), many, len(seeds))
                row.append(Cell(line.state) if line.state else cell)
    said = "; ".join(describe(key, value) for key, value in sorted(group.conditions.items()) if key[0] != "settings")
    made = [Row("unfinished" if line.state else "method", tuple(row)) for line, row in zip(lines, rows, strict=True)]
    return hoist_notes(Section(group.heading, said, tuple(columns), tuple(made), of=group.of))


def _lines(trials: list[Trial], group: Group, titles: Mapping[str, str]) -> list[Line]:
    name, done = label(trials[0], group, titles), [trial for trial in trials if trial.finished]
    lines = [Line(name + mark(done[0].run), seeds_text(done, trials), notes(done), done)] if done else []
    for trial in trials:
        if not trial.finished:
            said = (trial.run.message,) if trial.run.message else ()
            title = f"{name}{mark(trial.run)}, seed {trial.run.cell.seed}"
            lines.append(Line(title, fmt.MISSING, said, [], state(trial)))
    return lines


def priced(prices: Sequence[float], show: Callable[[float], str], untrained: int, seeds: int) -> Cell:
    """The geometric mean over seeds with the t-interval of its logarithm, as a price is positive and errs by a ratio;
    one seed that never gets there makes it infinite.

    `untrained` of the prices were paid before any training; of the `seeds` some may have no curve, and so no price.
    One that was paid before the curve begins (nan) is not known, and with it the mean.
    """
    if not prices:
        return Cell()
    before = sum(map(math.isnan, prices))
    if before:
        return Cell(notes=(f"reached before the first point of the curve by {before} of {len(prices)} seeds",))
    mean, ends = _middle(prices)
    text = show(mean) + ("" if ends is None else f" ({show(ends[0])} to {show(ends[1])})")
    there, known = sum(map(math.isfinite, prices)), len(prices)
    counts = {
        f"over {known} of {seeds} seeds": known < seeds,
        f"reached by {there} of {known} seeds": 0 < there < known,
        "reached by the untrained network" + f" of {untrained} of {known} seeds" * (known > 1): untrained > 0,
    }
    said = tuple(words for words, holds in counts.items() if holds)
    plain = None if ends is None else (f"{ends[0]:.10g}", f"{ends[1]:.10g}")
    return Cell(text, f"{mean:.10g}", ends=plain, notes=said)


def _middle(prices: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    if any(map(math.isinf, prices)) or min(prices) <= 0:  # nothing was paid where the first network was there
        return mean_interval(prices)[0], None
    mean, half = mean_interval([math.log(price) for price in prices])
    return math.exp(mean), None if half is None else (math.exp(mean - half), math.exp(mean + half))
