"""The overall table: each kind of result by its first number, with the places a method may have in it."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.records import EvalRecord
from harness.report.best import REMARK, places
from harness.report.format import MISSING, fixed, significant
from harness.report.layout import Cell, Column, Row, Section, hoist_notes
from harness.report.lines import Line, Place
from harness.report.results import Builder
from harness.report.sections import Conditions, Group, Trial, describe, of_eval, of_run, split

# Which number stands for a table: of the first of these evals that was measured, else the table's first.
FIRST = {
    "representation": ("linear", "knn"),
    "finetune": ("finetune", "semi"),
    "transfer": ("transfer",),
    "dense": ("segmentation", "detection"),
    "generation": ("generation",),
}
ACROSS = "mean rank in every section"  # the heading of the section over all others


@dataclass
class Standing:
    """A method's row of one section."""

    line: Line
    cells: list[Cell] = field(default_factory=list)  # a number and its rank, for each table that was measured
    middles: list[float] = field(default_factory=list)  # of the rank intervals

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.middles) if self.middles else None


def sections(
    trials: Sequence[Trial], references: Sequence[EvalRecord], titles: Mapping[str, str], mix: Collection[str] = ()
) -> tuple[Section, ...]:
    """One for each group of two or more methods that may be compared; then the mean ranks of all groups."""
    found: list[tuple[Group, list[Standing], Section]] = []
    alone: list[str] = []
    for group in split(trials, _conditions, mix):
        if len(group.methods()) == 1:
            name = titles.get(group.trials[0].run.cell.method, group.trials[0].run.cell.method)
            alone.append(f"Not ranked: {group.heading}, where {name} is alone.")
            continue
        standings, columns = _standings(group, references, titles, mix)
        if columns:
            section = _section(group, standings, columns)
            bold = [REMARK] if any(cell.best for row in section.rows for cell in row.cells) else []
            section = replace(section, remarks=(*bold, *_shared(group, titles)))
            found.append((group, standings, section))
    made = [section for _, _, section in found]
    if made and alone:
        made[-1] = replace(made[-1], remarks=(*made[-1].remarks, *alone))
    return tuple(made + ([_across(found)] if len(found) > 1 else []))


def _conditions(trial: Trial) -> Conditions:
    """Those of the run and of all its final evals that the table shows."""
    found = of_run(trial.run)
    for record in trial.final.values():
        for table in FIRST:
            found = of_eval(record, table) | found
    return found


def _shared(group: Group, titles: Mapping[str, str]) -> Iterable[str]:
    """Which rows rest on one pre-training, whose luck they share."""
    readers: dict[str, set[str]] = {}
    for trial in group.trials:
        readers.setdefault(trial.run.shared or trial.run.key, set()).add(trial.run.cell.method)
    for names in sorted({tuple(sorted(methods)) for methods in readers.values() if len(methods) > 1}):
        said = [titles.get(name, name) for name in names]
        yield f"{', '.join(said[:-1])} and {said[-1]} read one pre-training, and tie where they read it alike."


def _standings(
    group: Group, references: Sequence[EvalRecord], titles: Mapping[str, str], mix: Collection[str]
) -> tuple[list[Standing], list[Column]]:
    rows: dict[str, Standing] = {}
    columns: list[Column] = []
    for table, evals in FIRST.items():
        builder = Builder(table, group, references, titles, mix)
        for line in builder.lines:
            if line.kind in ("method", "unfinished"):
                rows.setdefault(line.label, Standing(line))
        place = _first(builder.places, evals, group.dataset)
        if place is None:
            continue
        column = builder.column(place)
        name = column.plain or column.title
        columns += [column, Column(f"rank by {name.partition(' (')[0]}", f"{name} rank", numeric=False)]
        by_label, ranked = {line.label: line for line in builder.lines}, places(builder.lines, place)
        for label, row in rows.items():
            row.cells += [builder.result(by_label[label], place), _rank(ranked.get(label))]
            row.middles += [statistics.fmean(ranked[label])] if label in ranked else []
    ordered = sorted(rows.values(), key=lambda row: (row.mean is None, row.mean or 0.0, row.line.label))
    return ordered, columns


def _first(found: Sequence[Place], evals: Sequence[str], dataset: str) -> Place | None:
    for name in evals:
        mine = [place for place in found if place.eval == name]
        # Of several data sets their mean, and otherwise the run's own.
        for wanted in (lambda p: "mean of" in p.title, lambda p: p.dataset == dataset, lambda p: True):
            for place in mine:
                if wanted(place):
                    return place
    return found[0] if found else None


def _rank(interval: tuple[int, int] | None) -> Cell:
    if interval is None:
        return Cell()
    low, high = interval
    return Cell(str(low) if low == high else f"{low}–{high}", str(low) if low == high else f"{low}-{high}")


def _section(group: Group, standings: Sequence[Standing], columns: Sequence[Column]) -> Section:
    last = Column("mean rank"), Column("img/s", better="higher")
    head = [Column("method", numeric=False), Column("seeds"), *columns, *last]
    rows = []
    for row in standings:
        mean = Cell() if row.mean is None else Cell(fixed(row.mean, 2))
        made_by = tuple(trial.run for trial in row.line.trials)
        cells = [Cell(row.line.label, notes=row.line.notes, records=made_by), Cell(row.line.seeds), *row.cells, mean]
        kind = "method" if row.line.kind == "method" else "unfinished"
        rows.append(Row(kind, (*cells, _speed(row.line))))
    stated = [key for key in sorted(group.conditions) if key[0] not in ("n", "settings")]
    said = "; ".join(describe(key, group.conditions[key]) for key in stated)
    return hoist_notes(Section(group.heading, said, tuple(head), tuple(rows), of=group.of))


def _speed(line: Line) -> Cell:
    speeds = [t.run.cost.img_s for t in line.trials if t.run.cost and t.run.cost.img_s]
    return Cell(significant(statistics.fmean(speeds)), f"{statistics.fmean(speeds):.10g}") if speeds else Cell()


def _across(found: Sequence[tuple[Group, list[Standing], Section]]) -> Section:
    """Each method's mean rank in every section, and the mean of those."""
    names = list(dict.fromkeys(row.line.label for _, standings, _ in found for row in standings))
    means = {
        name: [next((row.mean for row in standings if row.line.label == name), None) for _, standings, _ in found]
        for name in names
    }
    known = {name: [mean for mean in row if mean is not None] for name, row in means.items()}
    names.sort(key=lambda name: (not known[name], statistics.fmean(known[name] or [0.0]), name))
    columns = [Column("method", numeric=False), *(Column(group.heading) for group, _, _ in found), Column("mean rank")]
    rows = []
    for name in names:
        cells = [Cell(MISSING if mean is None else fixed(mean, 2)) for mean in means[name]]
        missing = len(known[name]) < len(found)
        note = (f"over {len(known[name])} of {len(found)} sections",) if missing and known[name] else ()
        mean = Cell(fixed(statistics.fmean(known[name]), 2), notes=note) if known[name] else Cell()
        rows.append(Row("method", (Cell(name), *cells, mean)))
    return Section(ACROSS, "", tuple(columns), tuple(rows))
