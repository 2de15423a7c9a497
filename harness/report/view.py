"""What of the tables is shown, and in which order: filters, columns, sorting, and what may be mixed on request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from harness.errors import HarnessError, unknown
from harness.records import Cell as RunCell
from harness.records import RunRecord
from harness.report.layout import Column, Row, Section, Table
from harness.report.sections import Kind

MIXABLE = get_args(Kind)
_NUMBER = re.compile(r"-?(\d+(\.\d*)?(e[-+]?\d+)?|inf)")
FIXED = ("method", "seeds")  # columns that always stay


@dataclass(frozen=True)
class View:
    """A view of the tables; the default shows everything and mixes nothing."""

    only: tuple[str, ...] = ()  # titles of tables
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # a word of the cell -> the values to keep
    columns: tuple[str, ...] = ()
    sort: str = ""  # a column, best first; with - before it the other way round
    mix: frozenset[str] = frozenset()  # conditions in which rows of one section may differ
    published: bool = False

    def of_runs(self, runs: Iterable[RunRecord]) -> list[RunRecord]:
        """Those that are kept. Raises HarnessError for a value that no run has."""
        runs = list(runs)
        for word, values in self.keep.items():
            known = {str(getattr(run.cell, word)) for run in runs}
            for value in values:
                if value not in known:
                    raise unknown(word, value, known, f"--filter {word}=...")
        return [run for run in runs if all(str(getattr(run.cell, w)) in v for w, v in self.keep.items())]

    def of_tables(self, tables: Sequence[Table]) -> list[Table]:
        """The tables asked for, cut and sorted. Raises HarnessError for a table or a column that is in none."""
        for name in self.only:
            if not any(_same(name, table.title) for table in tables):
                raise unknown("table", name, [table.title for table in tables], "--only NAME,NAME")
        kept = [t for t in tables if not self.only or any(_same(name, t.title) for name in self.only)]
        columns = [column for table in kept for section in table.sections for column in section.columns]
        for name in [*self.columns, *([self.sort.removeprefix("-")] if self.sort else [])]:
            if not _meant(name, columns):
                known = dict.fromkeys(column.plain or column.title for column in columns)
                raise unknown("column", name, known, "the head of a column or its beginning, or an eval")
        return [replace(table, sections=tuple(self._section(section) for section in table.sections)) for table in kept]

    def _section(self, section: Section) -> Section:
        if self.sort:
            section = _sorted(section, self.sort)
        if not self.columns:
            return section
        kept = sorted({j for name in (*FIXED, *self.columns) for j in _meant(name, section.columns)})
        rows = tuple(replace(row, cells=tuple(row.cells[j] for j in kept)) for row in section.rows)
        return replace(section, columns=tuple(section.columns[j] for j in kept), rows=rows)


def view(
    only: str | None = None,
    keep: Sequence[str] = (),
    columns: str | None = None,
    sort: str | None = None,
    mix: str | None = None,
    published: bool = False,
) -> View:
    """A view from the words of a command line. Raises HarnessError for a word of a cell or a condition that is none."""
    kept: dict[str, tuple[str, ...]] = {}
    for text in keep:
        word, _, values = text.partition("=")
        if word not in RunCell.model_fields or not values:
            raise HarnessError(
                f"the filter {text!r}", f"WORD=VALUE,VALUE with a word of {', '.join(RunCell.model_fields)}"
            )
        kept[word] = (*kept.get(word, ()), *_words(values))
    for kind in _words(mix):
        if kind not in MIXABLE:
            raise unknown("condition", kind, MIXABLE, "--mix device")
    return View(_words(only), kept, _words(columns), sort or "", frozenset(_words(mix)), published)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _same(asked: str, title: str) -> bool:
    """Whether the title is what was asked for, or begins with it; case, spaces and hyphens do not count."""
    return _letters(title).startswith(_letters(asked))


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9%]", "", text.lower())


def _meant(name: str, columns: Sequence[Column]) -> list[int]:
    """The columns that `name` means: an eval's own, or else those whose head begins with it."""
    own = [j for j, column in enumerate(columns) if column.eval and _letters(column.eval) == _letters(name)]
    heads = [(column.title, column.plain or column.title) for column in columns]
    return own or [j for j, names in enumerate(heads) if any(_same(name, head) for head in names)]


def _sorted(section: Section, sort: str) -> Section:
    """Each group of rows (a method with its untrained network) by the value of its first row; references stay last."""
    found = _meant(sort.removeprefix("-"), section.columns)
    if not found:
        return section
    j = found[0]
    groups: list[list[Row]] = []
    for row in section.rows:
        if row.kind == "untrained" and groups and groups[-1][0].kind == "method":
            groups[-1].append(row)
        else:
            groups.append([row])
    # The best first; where nothing is better, the smallest.
    rising = (section.columns[j].better == "higher") == sort.startswith("-")
    ordered = sorted(groups, key=lambda group: _key(group[0], j, rising))
    return replace(section, rows=tuple(row for group in ordered for row in group))


def _key(row: Row, j: int, rising: bool) -> tuple[int, int, float, str]:
    """References and published numbers after methods; what has no number after what has one."""
    cell = row.cells[j]
    found = _NUMBER.match(cell.plain or cell.text)  # of a rank interval its first place
    if found is None:
        return (row.kind in ("reference", "published"), 1, 0.0, cell.text)
    value = float(found[0])
    return (row.kind in ("reference", "published"), 0, value if rising else -value, row.cells[0].text)
