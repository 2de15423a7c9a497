"""The tables on a terminal of 100 columns or more; plain text where there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from harness.report.format import MISSING
from harness.report.layout import Cell, Section, Table, footnotes, shown
from harness.report.tables import of_study
from harness.store import Study

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid

PLAIN_WIDTH = 100  # where the output is no terminal and so has no width
NO_BETTER = "≤"  # in the column `beats`; in files the table's introduction says so, which is not printed here
GAP = 3  # columns of the screen between two cells
LONGEST = 40  # columns of the screen for one column of a table that nothing forces to fold
STYLES = {
    "method": "bold",
    "untrained": "dim",
    "reference": "dim",
    "unfinished": "italic yellow",
    "published": "dim italic",
}


def show(study: Study, console: Console | None = None) -> None:
    """Print the study's tables."""
    print_tables(of_study(study), console)


def print_tables(tables: Sequence[Table], console: Console | None = None) -> None:
    """Print tables; colours only on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, PLAIN_WIDTH), color_system=None)
    for table in tables:
        letters = footnotes(table)
        console.print(Text(f"\n{table.title}", style="bold underline"))
        for section in shown(table):
            console.print(Text(section.heading, style="bold"), Text(section.conditions, style="dim"), sep="\n")
            for part, widths in _parts(section, _widths(section, letters), console.width, table.tall):
                console.print(_grid(part, widths, letters, table.tall))
            # Of flagged cells alone: a goal of less is better is written with the same sign.
            if any(cell.flag and NO_BETTER in cell.text for row in section.rows for cell in row.cells):
                console.print(
                    Text(f"{NO_BETTER}: no better than its own untrained network, or raw pixels", style="yellow")
                )
            for remark in section.remarks:
                console.print(Text(remark, style="yellow"))
        for note, letter in letters.items():
            console.print(Text(f"[{letter}] {note}", style="dim"))
        if not table.sections:
            console.print("No runs yet.")


def _parts(section: Section, widths: list[_Width], width: int, tall: bool) -> Iterator[tuple[Section, list[int]]]:
    """The section, or parts of it that fit the width, each with the first column; and the columns' widths."""
    start, end = 1, len(widths)
    while start < end:
        stop, room = start + 1, width - widths[0].least - widths[start].least - GAP
        while stop < end and widths[stop].least + GAP <= room:
            room -= widths[stop].least + GAP
            stop += 1
        kept = [0, *range(start, stop)]
        rows = [replace(row, cells=tuple(row.cells[j] for j in kept)) for row in section.rows]
        filled = [row for row in rows if not tall or any(cell.text != MISSING for cell in row.cells[1:])]
        part = replace(section, columns=tuple(section.columns[j] for j in kept), rows=tuple(filled))
        yield part, _shared([widths[j] for j in kept], room)
        start = stop


class _Width(NamedTuple):
    """Columns of the screen that a column of the table needs at least, and those it would fill."""

    least: int
    whole: int


def _widths(section: Section, letters: Mapping[str, str]) -> list[_Width]:
    """Numbers and the first column are never folded; heads and other text are folded between words."""
    found = []
    for j, column in enumerate(section.columns):
        head = _marked(column.title, column.notes, letters)
        values = [_shown(row.cells[j], letters) for row in section.rows]
        words = [word for text in [head, *values] for word in text.split()]
        whole = values if column.numeric or j == 0 else []
        least = max(map(len, [*words, *whole]))
        found.append(_Width(min(least, LONGEST), max(map(len, [head, *values]))))
    return found


def _shared(widths: list[_Width], room: int) -> list[int]:
    """The least widths, with the room that is left given out evenly to those that would fill it."""
    given = [width.least for width in widths]
    while room > 0 and any(g < w.whole for g, w in zip(given, widths, strict=True)):
        for j, width in enumerate(widths):
            if room > 0 and given[j] < width.whole:
                given[j], room = given[j] + 1, room - 1
    return given


def _grid(section: Section, widths: list[int], letters: Mapping[str, str], tall: bool) -> Grid:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    def text(said: str, notes: Sequence[str], style: str = "") -> Text:
        return Text(_marked(said, notes, letters), style=style)

    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="none")
    for column, width in zip(section.columns, widths, strict=True):
        side = "right" if column.numeric else "left"
        grid.add_column(text(column.title, column.notes), justify=side, overflow="fold", width=width)
    for row in section.rows:
        first, *others = row.cells
        cells = [Text(_shown(cell, letters), style="bold red" if cell.flag else "") for cell in others]
        grid.add_row(text(first.text, first.notes), *cells, style="" if tall else STYLES[row.kind])
    return grid


def _shown(cell: Cell, letters: Mapping[str, str]) -> str:
    return _marked(f"*{cell.text}" if cell.best else cell.text, cell.notes, letters)


def _marked(said: str, notes: Sequence[str], letters: Mapping[str, str]) -> str:
    return said + (f" [{','.join(letters[note] for note in notes)}]" if notes else "")
