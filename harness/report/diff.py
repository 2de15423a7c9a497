"""`harness diff`: why a table changed. Which records are new, gone or differ and in which field, and which cells by it.

Whether a field reaches a table is not looked up in a list but tried: the tables are a pure function of the records, so
they are made of A's records with that one field as B has it, and the cells that change then change by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from harness.records import EvalRecord, RunRecord
from harness.report import anytime
from harness.report.changes import Change, Differing, applied, asked, compare
from harness.report.format import MISSING
from harness.report.layout import Cell, Column, Row, Table
from harness.report.overall import ACROSS
from harness.report.sides import Side, read
from harness.report.tables import build

Place = tuple[str, str, str, str]  # table, section, row, column
NEW, GONE = "records that are new", "records that are gone"
CURVE = "Anytime curve"


@dataclass(frozen=True)
class CellChange:
    """A cell with both texts, None where a side has no such cell, and the causes that change it when alone."""

    place: Place
    old: str | None
    new: str | None
    by: tuple[str, ...]
    whole: bool = False  # one side has no such row at all


@dataclass(frozen=True)
class Difference:
    a: Side
    b: Side
    requests: list[Change] = field(default_factory=list)
    records: list[Differing] = field(default_factory=list)
    cells: list[CellChange] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """In what was asked for and in every field of every record."""
        return not (self.requests or self.records)

    @property
    def stale(self) -> list[str]:
        """Stored tables that differ where today's code sees no cause: other code made them."""
        files = self.a.stored.keys() & self.b.stored.keys() if not self.cells else ()
        return sorted(name for name in files if self.a.stored[name] != self.b.stored[name])

    def reaching(self) -> set[str]:
        """The causes that change a cell."""
        return {cause for cell in self.cells for cause in cell.by}


def diff(a: str, b: str, format: str = "text") -> int:
    """Print why the tables of two studies differ. A side is a folder, or PATH@REVISION.

    Returns the exit status: 0 where records and stored tables are equal, 1 where not. Raises HarnessError where a side
    is no study.
    """
    from harness.report.diff_show import show

    found = between(read(a), read(b))
    show(found, format)
    return 0 if found.equal and not found.stale else 1


def between(a: Side, b: Side) -> Difference:
    """What differs, in fixed order."""
    records, same_keys = compare(a, b)
    if not records:
        return Difference(a, b, asked(a.request, b.request))
    before, after = _cells(a.runs, a.evals), _cells(same_keys.runs, same_keys.evals)
    places = [
        place for place in [*before, *(p for p in after if p not in before)] if before.get(place) != after.get(place)
    ]
    by: dict[Place, list[str]] = {place: [] for place in places}
    for name, made in _alone(_narrowed(a, places), records) if places else ():
        for place in places:
            if made.get(place) != before.get(place):
                by[place].append(name)
    rows = {place[:3] for place in before} & {place[:3] for place in after}
    cells = [CellChange(p, before.get(p), after.get(p), tuple(by[p]), p[:3] not in rows) for p in places]
    return Difference(a, b, asked(a.request, b.request), records, cells)


def _narrowed(a: Side, places: Iterable[Place]) -> Side:
    """The runs of the sections in which a cell changes: no other run has a say in them, and there may be 10,000.

    In the mean ranks of all sections every run has one; in a caption, what has no run.
    """
    headings = {section for _, section, _, _ in places}

    def there(run: RunRecord) -> bool:
        block = f"{run.cell.dataset} · {run.cell.size} · {run.cell.budget}"
        return any(heading.startswith(block) or heading == ACROSS for heading in headings)

    runs = [run for run in a.runs if there(run)]
    left_out = {run.key for run in a.runs} - {run.key for run in runs}
    return Side(a.name, a.request, runs, [record for record in a.evals if record.key not in left_out])


def cause(one: Differing, change: Change) -> str:
    """A field of a kind of record: the same field of all records is one cause."""
    assert one.old is not None
    return f"{'run' if isinstance(one.old, RunRecord) else one.old.eval}: {change.cause}"


def _alone(a: Side, records: Iterable[Differing]) -> Iterable[tuple[str, dict[Place, str]]]:
    """Each cause with the cells of A's records and of nothing changed but that."""
    records = list(records)
    for name, how in ((GONE, "gone"), (NEW, "new")):
        swaps = [(one.old, one.new) for one in records if one.how == how]
        if swaps:
            yield name, _with(a, swaps)
    fields: dict[str, dict[int, list[Change]]] = {}
    for i, one in enumerate(records):
        for change in one.changes:
            fields.setdefault(cause(one, change), {}).setdefault(i, []).append(change)
    for name, where in sorted(fields.items()):
        swaps = []
        for i, changes in where.items():
            old = records[i].old
            assert old is not None
            swaps.append((old, applied(old, changes)))
        yield name, _with(a, swaps)


def _with(
    a: Side, swaps: Iterable[tuple[RunRecord | EvalRecord | None, RunRecord | EvalRecord | None]]
) -> dict[Place, str]:
    """The cells of A's records with some put in place of others; None is no record."""
    swaps = list(swaps)
    out = {id(old) for old, _ in swaps if old is not None}
    put = [new for _, new in swaps if new is not None]
    runs = [run for run in a.runs if id(run) not in out] + [new for new in put if isinstance(new, RunRecord)]
    evals = [one for one in a.evals if id(one) not in out] + [new for new in put if isinstance(new, EvalRecord)]
    return _cells(runs, evals)


# -- cells ------------------------------------------------------------------------------------------------------


def _cells(runs: list[RunRecord], evals: list[EvalRecord]) -> dict[Place, str]:
    """Every cell of every table and of the anytime curve, in reading order; what is said around it has cells too."""
    found: dict[Place, str] = {}
    for table in build(runs, evals):
        for place, text in _of_table(table):
            found[_free(place, found)] = text
    for point in anytime.points(runs, evals):
        row, at = f"{point.method}, seed {point.seed}", f"{point.title} at {point.share:g} ({point.eval})"
        section = f"{point.dataset} · {point.size} · {point.budget}"
        said = {at: point.value, f"images at {point.share:g}": point.img, f"FLOP at {point.share:g}": point.flop}
        for column, value in said.items():
            if value is not None:
                found[CURVE, section, row, column] = f"{value:.10g}"
    return found


def _of_table(table: Table) -> Iterable[tuple[Place, str]]:
    yield (table.title, "", "", "caption"), table.caption
    for section in table.sections:
        yield (table.title, section.heading, "", "conditions"), section.conditions
        for remark in section.remarks:
            yield (table.title, section.heading, "", "remark"), remark
        for picture in section.pictures:
            yield (table.title, section.heading, picture.caption, "picture"), "there"
        for row in section.rows:
            for column, cell in zip(section.columns, row.cells, strict=True):
                title = column.plain or column.title
                yield (table.title, section.heading, row.cells[0].text, title), _text(cell)
                if notes := _notes(column, cell, row):
                    yield (table.title, section.heading, row.cells[0].text, f"notes of {title}"), notes


def _text(cell: Cell) -> str:
    """What is to be seen of a cell: where it shows minutes, the seconds too; and whether it is marked."""
    plain = f" ({cell.plain})" if cell.plain and not cell.text.startswith(cell.plain) else ""
    marks = {" (flagged)": cell.flag, " (best)": cell.best}
    return cell.text + plain + "".join(mark for mark, holds in marks.items() if holds)


def _notes(column: Column, cell: Cell, row: Row) -> str:
    """With those that stand at the column's head because all its values have them: one that differs is one change."""
    shared = () if cell.text == MISSING or row.kind == "unfinished" else column.notes
    return "; ".join(sorted({*shared, *cell.notes}))


def _free(place: Place, taken: Mapping[Place, str]) -> Place:
    """The place, counted where several have one name."""
    table, section, row, column = place
    number = 2
    while place in taken:
        place = (table, section, row, f"{column} ({number})")
        number += 1
    return place
