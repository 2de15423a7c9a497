"""What a table is, before it has a format: sections of rows and columns, with footnotes and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from harness.records import EvalRecord, RunRecord
from harness.report.format import MISSING

Kind = Literal["method", "untrained", "unfinished", "reference", "published"]


@dataclass(frozen=True)
class Cell:
    text: str = MISSING
    plain: str | None = None  # for CSV, where it differs: seconds for minutes, a bare number for one with a prefix
    half: str | None = None  # half-width of the interval, already in `text`
    ends: tuple[str, str] | None = None  # or, where it is not symmetric, its ends
    repeats: str | None = None  # half-width over the eval's own repeats, of one seed
    notes: tuple[str, ...] = ()
    flag: bool = False  # to be seen at a glance: a method that does not beat its references
    best: bool = False  # of its column, and told apart from the next
    records: tuple[EvalRecord | RunRecord, ...] = field(default=(), compare=False, repr=False)  # that it was read from


@dataclass(frozen=True)
class Column:
    title: str
    plain: str | None = None  # for CSV, where it differs
    numeric: bool = True
    notes: tuple[str, ...] = ()
    eval: str = ""  # whose number it is
    better: str = ""  # "higher" or "lower", where one is


@dataclass(frozen=True)
class Row:
    kind: Kind
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Picture:
    caption: str
    path: str  # relative to the folder of the tables
    who: str = ""  # the row whose picture it is


@dataclass(frozen=True)
class Section:
    """Rows that may be compared. `heading` names what they share where another section differs in it."""

    heading: str
    conditions: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    of: tuple[str, ...] = ()  # data set, size and budget, where all rows have the same


@dataclass(frozen=True)
class Table:
    title: str
    caption: str
    sections: tuple[Section, ...]
    tall: bool = False  # many columns, few rows: shown with its columns down the side


def hoist_notes(section: Section) -> Section:
    """Move a note that every value of a column carries to the column's head."""
    columns, rows = list(section.columns), [list(row.cells) for row in section.rows]
    values = [i for i, row in enumerate(section.rows) if row.kind != "unfinished"]
    for j, column in enumerate(columns):
        filled = [rows[i][j] for i in values if rows[i][j].text != MISSING]
        if j == 0 or not filled:
            continue
        shared = tuple(note for note in filled[0].notes if all(note in cell.notes for cell in filled))
        if not shared:
            continue
        columns[j] = replace(column, notes=column.notes + shared)
        for i in values:
            kept = tuple(note for note in rows[i][j].notes if note not in shared)
            rows[i][j] = replace(rows[i][j], notes=kept)
    kept_rows = tuple(Row(old.kind, tuple(cells)) for old, cells in zip(section.rows, rows, strict=True))
    return replace(section, columns=tuple(columns), rows=kept_rows)


def transpose(section: Section) -> Section:
    """The section with a column per row and a row per column."""
    first, *others = section.columns
    columns = [Column(first.title, numeric=False, notes=first.notes)]
    columns += [Column(row.cells[0].text, notes=row.cells[0].notes) for row in section.rows]
    rows = [
        Row("method", (Cell(column.title, notes=column.notes), *(row.cells[j] for row in section.rows)))
        for j, column in enumerate(others, start=1)
    ]
    return replace(section, columns=tuple(columns), rows=tuple(rows))


def shown(table: Table) -> list[Section]:
    """The table's sections the way round that people read them."""
    return [transpose(section) if table.tall else section for section in table.sections]


def footnotes(table: Table) -> dict[str, str]:
    """Each note of the table with its letter, in reading order."""
    letters: dict[str, str] = {}
    for note in _notes(table):
        letters.setdefault(note, _letter(len(letters)))
    return letters


def _notes(table: Table) -> Iterator[str]:
    for section in shown(table):
        for column in section.columns:
            yield from column.notes
        for row in section.rows:
            for cell in row.cells:
                yield from cell.notes


def _letter(i: int) -> str:
    """a ... z, aa, ab, ..."""
    head, tail = divmod(i, 26)
    return (_letter(head - 1) if head else "") + chr(ord("a") + tail)
