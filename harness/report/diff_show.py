"""A difference of two studies, for a person or as JSON; the same difference gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from harness.errors import unknown
from harness.records import EvalRecord
from harness.report.changes import ABSENT, Change, Differing, guesses
from harness.report.diff import GONE, NEW, CellChange, Difference, cause

LONGEST = 60  # characters of a value on a terminal
PIPE_WIDTH = 140  # where the output is no terminal and so has no width
AROUND = "(section)"  # the row of what stands above or under the rows: conditions, remarks, pictures
SEVERAL = "only several of these together"


def show(found: Difference, format: str = "text") -> None:
    """Print it. Raises HarnessError for another format."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS, "for example: harness diff A B --format json")
    FORMATS[format](found)


# -- what is said ------------------------------------------------------------------------------------------------


def _counts(found: Difference) -> list[str]:
    sides = (("A", found.a), ("B", found.b))
    width = max(len(side.name) for _, side in sides)
    return [f"{x}  {s.name:<{width}}  {len(s.runs):,} runs, {len(s.evals):,} evals" for x, s in sides]


def _verdict(found: Difference) -> str:
    if found.equal:
        return "The records are equal, and so are the tables that are made of them."
    if not found.cells:
        return "No cell of a table and no point of a curve changes."
    return f"{len(found.cells):,} cells of tables and points of curves change."


def _seen(found: Difference, one: Differing) -> list[Change]:
    """The fields that change a cell, or all of them where only several together do."""
    reaching = found.reaching()
    return [change for change in one.changes if cause(one, change) in reaching]


def _unseen(found: Difference) -> list[tuple[str, int]]:
    """The causes that change no cell, with the count of records that have them."""
    counts: dict[str, int] = {}
    for one in found.records:
        for name in {cause(one, change) for change in one.changes} - found.reaching():
            counts[name] = counts.get(name, 0) + 1
    return sorted(counts.items())


def _settings(one: Differing) -> list[str]:
    """The settings that changed the key of a run."""
    changed = [c for c in one.changes if c.path[0] in ("config", "train", "data_revision", "released")]
    return [f"{c.field} {_value(c.old)} → {_value(c.new)}" for c in changed]


def _said(one: Differing, change: Change) -> str:
    if change.path[-1] == "hits" and isinstance(one.old, EvalRecord) and ABSENT not in (change.old, change.new):
        return guesses(one.old, change)
    return f"{_value(change.old)} → {_value(change.new)}"


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"


def _lines(found: Difference) -> Iterator[tuple[str, str]]:
    """The records, a line each with what kind of line it is."""
    for change in found.requests:
        yield "differs", f"asked for: {change.field} {_value(change.old)} → {_value(change.new)}"
    for one in found.records:
        if one.how != "differs":
            yield one.how, one.name
            continue
        seen = _seen(found, one)
        if one.keys:
            why = "; ".join(_settings(one)) or "no setting: made by another version of the harness"
            yield "differs", f"{one.name}: key {one.keys[0]} → {one.keys[1]} by {why}"
        elif seen:
            yield "differs", one.name
        for change in seen:
            yield "field", f"{change.field}  {_said(one, change)}"


def _by(cell: CellChange) -> str:
    return ", ".join(cell.by) or SEVERAL


def _sections(found: Difference) -> Iterator[tuple[str, list[CellChange]]]:
    for (table, section), cells in groupby(found.cells, key=lambda cell: cell.place[:2]):
        yield " · ".join(filter(None, (table, section))), list(cells)


# -- formats -----------------------------------------------------------------------------------------------------


def _text(found: Difference) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=PIPE_WIDTH, color_system=None)
    styles = {"new": "green", "gone": "red", "differs": "yellow", "field": ""}

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    for line in _counts(found):
        say(line)
    say(f"\n{_verdict(found)}", "bold")
    if found.stale:
        say(f"But {', '.join(found.stale)} of A and B differ: as stored, they were made by different code.", "yellow")
    lines = list(_lines(found))
    if lines:
        say("\nRecords", "bold underline")
    for kind, line in lines:
        say(f"{'' if kind == 'field' else kind:<8}{line}", styles[kind])
    if _unseen(found):
        say("\nIn no table and no curve", "bold underline")
    for name, count in _unseen(found):
        say(f"        {name}  ({count:,} {'record' if count == 1 else 'records'})", "dim")
    for heading, cells in _sections(found):
        say(f"\n{heading}", "bold underline")
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for head in ("row", "column", "old", "new", "by"):
            grid.add_column(head, overflow="fold")
        for words in _rows(cells):
            grid.add_row(*map(Text, words))
        console.print(grid)


def _rows(cells: list[CellChange]) -> Iterator[tuple[str, ...]]:
    """Row, column, old, new, causes; a row that one side lacks is told in one."""
    for (row, whole), group in groupby(cells, key=lambda cell: (cell.place[2], cell.whole)):
        found = list(group)
        if not whole:
            yield from ((row or AROUND, cell.place[3], cell.old or "", cell.new or "", _by(cell)) for cell in found)
            continue
        causes = ", ".join(dict.fromkeys(name for cell in found for name in cell.by)) or SEVERAL
        said = ("", "is new") if found[0].old is None else ("is gone", "")
        yield (row or AROUND, f"all {len(found)}", *said, causes)


def _json(found: Difference) -> None:
    reaching = found.reaching()
    print(
        json.dumps(
            {
                "a": found.a.name,
                "b": found.b.name,
                "equal": found.equal,
                "stored_tables_that_differ": found.stale,
                "request": [{"field": c.field, "old": c.old, "new": c.new} for c in found.requests],
                "records": [_plain(one, reaching) for one in found.records],
                "cells": [
                    dict(zip(("table", "section", "row", "column"), cell.place, strict=True))
                    | {"old": cell.old, "new": cell.new, "by": list(cell.by)}
                    for cell in found.cells
                ],
            },
            indent=1,
            ensure_ascii=False,
        )
    )


def _plain(one: Differing, reaching: set[str]) -> dict[str, Any]:
    fields = [
        {"field": c.field, "old": c.old, "new": c.new, "in_a_table": cause(one, c) in reaching} for c in one.changes
    ]
    keys = {"keys": list(one.keys)} if one.keys else {}
    where = {"new": NEW, "gone": GONE}.get(one.how)
    return {"name": one.name, "how": one.how, **keys} | (
        {"in_a_table": where in reaching} if where else {"fields": fields}
    )


FORMATS: dict[str, Callable[[Difference], None]] = {"text": _text, "json": _json}
