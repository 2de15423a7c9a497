"""The tables of results: what each method, its untrained network and the references reach."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from harness.records import EvalRecord
from harness.report.best import REMARK, best
from harness.report.format import MISSING, fixed
from harness.report.layout import Cell, Column, Picture, Row, Section, hoist_notes
from harness.report.lines import FLOOR, Line, Place, notes, per_eval, seeds_text, state
from harness.report.published import Published
from harness.report.sections import (
    Group,
    Records,
    Trial,
    describe,
    differences,
    label,
    mark,
    of_eval,
    of_trial,
    split,
)
from harness.stats import mean_interval
from harness.store import Study

PICTURED = ("representation", "generation", "dense")
ARROWS = {"higher": "↑", "lower": "↓"}


def sections(
    table: str,
    trials: Sequence[Trial],
    references: Sequence[EvalRecord],
    titles: Mapping[str, str],
    published: Mapping[str, Sequence[Published]] | None = None,
    mix: Collection[str] = (),
) -> tuple[Section, ...]:
    """`published` are the numbers of the methods' cards, where they are to stand beside the measured ones.

    Rows may differ in conditions of the kinds in `mix`; each then says its own.
    """
    groups = split(trials, lambda trial: of_trial(trial, table), mix)
    builders = [Builder(table, group, references, titles, mix) for group in groups]
    for builder in builders if published else []:
        builder.add_published(published)
    return tuple(builder.section() for builder in builders)


class Builder:
    """One section of one table: its rows and columns, and what stands in a cell."""

    def __init__(
        self,
        table: str,
        group: Group,
        references: Sequence[EvalRecord],
        titles: Mapping[str, str],
        mix: Collection[str] = (),
    ) -> None:
        self.table, self.group, self.titles, self.mix = table, group, titles, mix
        self.conditions = dict(group.conditions)
        self.remarks: list[str] = []
        self.lines = [line for trials in group.methods() for line in self._of_method(trials, titles)]
        self.lines += self._of_references(references)
        self._set_rivals()
        self.places = self._places()
        self.best = {place: found for place in self.places if (found := best(self.lines, place)) is not None}
        self.remarks += [REMARK] if self.best else []
        self.remarks += self._said_of_all()

    def section(self) -> Section:
        """The section, with notes that a whole column shares at the column's head."""
        columns = [Column("method", numeric=False), Column("seeds"), *map(self.column, self.places)]
        closing = self._closing()
        if not self.places:
            columns.append(Column("state", numeric=False))
        columns += [Column(title, numeric=False) for title in closing]
        rows = [Row(line.kind, tuple(self._cells(line, closing.values()))) for line in self.lines]
        stated = [key for key in sorted(self.conditions) if key[0] not in ("n", "settings")]
        said = [describe(key, self.conditions[key]) for key in stated]
        made = Section(
            self.group.heading,
            "; ".join(said),
            tuple(columns),
            tuple(rows),
            tuple(self.remarks),
            tuple(self._pictures()),
            self.group.of,
        )
        return hoist_notes(made)

    # -- rows ------------------------------------------------------------------------------------------------

    def _of_method(self, trials: list[Trial], titles: Mapping[str, str]) -> list[Line]:
        name = label(trials[0], self.group, titles)
        finished = [trial for trial in trials if trial.finished]
        lines = []
        if finished:
            records = [self._admitted(trial.final, name) for trial in finished]
            marked = name + mark(finished[0].run)
            said = (*notes(finished), *self._own_conditions(finished))
            lines.append(Line("method", marked, seeds_text(finished, trials), records, said, finished))
        untrained = [found for t in trials if (found := self._admitted(t.untrained, f"{name}, untrained"))]
        if untrained:
            lines.append(Line("untrained", f"{name}, untrained", str(len(untrained)), untrained))
            if finished and self.table != "cost":  # a trained network is no cheaper than an untrained one
                lines[0].rivals["untrained"] = lines[-1]
        for trial in trials:
            if not trial.finished:
                said = (trial.run.message,) if trial.run.message else ()
                title = f"{name}{mark(trial.run)}, seed {trial.run.cell.seed}"
                lines.append(Line("unfinished", title, notes=said, trials=[trial], state=state(trial)))
        return lines

    def _own_conditions(self, trials: Sequence[Trial]) -> Iterable[str]:
        """Of the conditions that are mixed in this section, those of these trials, where others differ."""
        if not self.mix:
            return
        every = [of_trial(trial, self.table) for trial in self.group.trials]
        for key in sorted({key for found in every for key in found if key[0] in self.mix}):
            if len({found[key] for found in every if key in found}) > 1:
                mine = {found[key] for trial in trials if key in (found := of_trial(trial, self.table))}
                yield "; ".join(f"mixed: {describe(key, value)}" for value in sorted(mine))

    def _of_references(self, references: Sequence[EvalRecord]) -> list[Line]:
        wanted = {key for line in self.lines for seed in line.records for key in seed}
        rows: dict[str, Records] = {}
        for record in self._fitting(references):
            place = (record.eval, record.dataset)
            if record.dataset != self.group.dataset and place not in wanted:
                continue
            found = self._admitted({place: record}, record.reference or "")
            if found:
                rows.setdefault(record.reference or "", {}).update(found)
                self.conditions |= {k: v for k, v in of_eval(record, self.table).items() if k[0] not in self.mix}
        ordered = sorted(rows, key=lambda name: (name != FLOOR, name))
        return [Line("reference", name, records=[rows[name]]) for name in ordered]

    def add_published(self, published: Mapping[str, Sequence[Published]]) -> None:
        """A row for each published number that is comparable with a column; for each other a remark with the reason."""
        seen = [r for line in self.lines for seed in line.records for r in seed.values()]
        own = [r for r in seen if r.dataset == self.group.dataset]
        measured = {key: n for r in own for key, n in r.numbers.items() if n.table == self.table}
        px = next((trial.run.spec.size for trial in self.group.trials if trial.run.spec), None)
        for name in dict.fromkeys(trial.run.cell.method for trial in self.group.trials):
            for entry in published.get(name, ()):
                if entry.table != self.table:
                    continue
                why = entry.why_not(self.group.dataset, px, measured)
                if why:
                    self.remarks.append(entry.refusal(self.titles.get(name, name), why))
                    continue
                title = measured[entry.number].title
                place = next(p for p in self.places if p.title == title and p.dataset == self.group.dataset)
                self.lines.append(entry.line(self.titles.get(name, name), place))

    def _fitting(self, references: Sequence[EvalRecord]) -> list[EvalRecord]:
        """Of the references that differ in settings only, the one that agrees with the section, else the last."""
        chosen: dict[tuple[str | None, str, str], EvalRecord] = {}
        for record in references:
            place = (record.reference, record.eval, record.dataset)
            if place not in chosen or not differences(of_eval(record, self.table), self.conditions):
                chosen[place] = record
        return list(chosen.values())

    def _admitted(self, records: Records, who: str) -> Records:
        """The records with numbers in this table that agree with the section; what is left out is said."""
        kept: Records = {}
        for place, record in records.items():
            mine = of_eval(record, self.table)
            wrong = differences(mine, self.conditions)
            if wrong:
                said = ", ".join(describe(key, mine[key]) for key in wrong)
                here = ", ".join(describe(key, self.conditions[key]) for key in wrong)
                remark = f"{who}: {record.eval} is left out, it has {said}; this section has {here}."
                self.remarks += [] if remark in self.remarks else [remark]
            elif mine:
                kept[place] = record
        return kept

    def _said_of_all(self) -> list[str]:
        """What records say of the whole table: how far real images are from real images, with each network."""
        if self.table != "generation":
            return []
        records = (record for line in self.lines for seed in line.records for record in seed.values())
        return list(dict.fromkeys(said for record in records for said in record.chosen.get("remarks", [])))

    def _set_rivals(self) -> None:
        floor = next((x for x in self.lines if x.kind == "reference" and x.label == FLOOR), None)
        for line in self.lines:
            if line.kind == "method" and floor and self.table != "cost":
                line.rivals["pixels"] = floor
        told = any(remark.startswith(FLOOR) for remark in self.remarks)
        raced = self.table == "representation" and any(line.kind == "method" for line in self.lines)
        if floor is None and raced and not told:
            self.remarks.append("Raw pixels were not measured here: “beats” speaks of the untrained network alone.")

    # -- columns ---------------------------------------------------------------------------------------------

    def _places(self) -> list[Place]:
        order: dict[Place, int] = {}
        for line in self.lines:
            for seed in line.records:
                for (name, dataset), record in seed.items():
                    mine = [n for n in record.numbers.values() if n.table == self.table]
                    for i, number in enumerate(mine):
                        place = Place(name, dataset, number.title)
                        order[place] = min(i, order.get(place, i))
        own = self.group.dataset
        return sorted(order, key=lambda p: (p.eval, p.dataset != own, p.dataset, order[p], p.title))

    def column(self, place: Place) -> Column:
        number = next(n for line in self.lines for n in line.numbers(place))
        title = place.title
        if place.dataset != self.group.dataset:
            title += f" on {place.dataset}"
        if any(p.title == place.title and p.dataset == place.dataset and p != place for p in self.places):
            title += f" ({place.eval})"
        return Column(f"{title} {ARROWS[number.better]}", title, eval=place.eval, better=number.better)

    def _closing(self) -> dict[str, Callable[[Line], Cell]]:
        """The columns after the numbers."""
        if not self.places:
            return {}
        if self.table == "cost":
            return {}
        if self.table != "generation":
            taps = {"tap": self._tap, "trials": self._trials}
            return {"beats": self._beats} | taps | {"test n": self._n}
        rivalled = any(line.rivals for line in self.lines)
        return ({"beats": self._beats} if rivalled else {}) | {"samples n": self._n}

    # -- cells -----------------------------------------------------------------------------------------------

    def _cells(self, line: Line, closing: Iterable[Callable[[Line], Cell]]) -> list[Cell]:
        cells = [Cell(line.label, notes=line.notes, records=tuple(t.run for t in line.trials)), Cell(line.seeds)]
        cells += [self.result(line, place) for place in self.places]
        cells += [] if self.places else [Cell(line.state or "not evaluated")]
        return cells + [Cell() if line.state or line.stated else make(line) for make in closing]

    def result(self, line: Line, place: Place) -> Cell:
        if line.state:
            return Cell(line.state)
        if place in line.stated:
            return Cell(f"{line.stated[place]:g}")
        numbers = line.numbers(place)
        if not numbers:
            return Cell()
        digits = max(n.digits for n in numbers)
        mean, half = mean_interval([n.value for n in numbers])
        said = [note for record in line.evals(place) for note in record.notes]
        said += [n.note for n in numbers if n.note]
        if len(numbers) < len(line.records):
            said.append(f"over {len(numbers)} of {len(line.records)} seeds")
        plain, plain_half = fixed(mean, digits), None if half is None else fixed(half, digits)
        text = plain if plain_half is None else f"{plain} ± {plain_half}"
        repeats = fixed(numbers[0].half, digits) if len(numbers) == 1 and numbers[0].half is not None else None
        if repeats is not None:
            text = f"{plain} (± {repeats})"
        beaten = any(self._not_better(line, rival, place) for rival in line.rivals.values())
        first = self.best.get(place)
        leads = first is not None and first.line is line and not beaten
        said += [first.note(digits)] if leads else []
        seen = tuple(line.evals(place))
        said = dict.fromkeys(said)
        return Cell(text, plain, plain_half, None, repeats, tuple(said), flag=beaten, best=leads, records=seen)

    def _not_better(self, line: Line, rival: Line, place: Place) -> bool | None:
        """Whether the line's mean is no better than the rival's; None when they cannot be compared."""
        mine, theirs = line.mean(place), rival.mean(place)
        if mine is None or theirs is None:
            return None
        higher = line.numbers(place)[0].better == "higher"
        return not (mine > theirs if higher else mine < theirs)

    def _beats(self, line: Line) -> Cell:
        beaten, failed = [], []
        for name, rival in line.rivals.items():
            verdicts = {p: v for p in self.places if (v := self._not_better(line, rival, p)) is not None}
            where = [p.title for p, not_better in verdicts.items() if not_better]
            if where:
                failed.append(f"≤ {name}" + ("" if len(where) == len(verdicts) else f": {', '.join(where)}"))
            elif verdicts:
                beaten.append(name)
        return Cell("; ".join(failed) or ", ".join(beaten) or MISSING, flag=bool(failed))

    def _tap(self, line: Line) -> Cell:
        return Cell(per_eval(line.records, lambda r: str(r.chosen["tap"]) if "tap" in r.chosen else None))

    def _trials(self, line: Line) -> Cell:
        return Cell(per_eval(line.records, lambda record: str(record.trials)))

    def _n(self, line: Line) -> Cell:
        found = {str(n.n) for place in self.places for n in line.numbers(place)}
        return Cell(", ".join(sorted(found, key=int)) or MISSING)

    def _pictures(self) -> Iterable[Picture]:
        study = Study(Path(".."))  # seen from the folder of the tables
        for line in self.lines if self.table in PICTURED else []:
            for record in (r for seed in line.records for r in seed.values() if line.kind != "untrained"):
                seed = f", seed {record.cell.seed}" if record.cell else ""
                for name in record.pictures:
                    what = f"{Path(name).stem} of {line.label}{seed}"
                    yield Picture(what, (study.holding(record) / name).as_posix(), line.label)
