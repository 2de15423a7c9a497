"""Tables as Markdown, CSV, LaTeX (booktabs) or a page; equal tables give equal bytes.

LaTeX goes through pandas, which needs jinja2 for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from harness.errors import unknown
from harness.report.format import MISSING
from harness.report.html import page
from harness.report.layout import Cell, Section, Table, footnotes, shown

if TYPE_CHECKING:
    import pandas


LAST = ("best", "notes")  # of the columns of CSV


def render(tables: Sequence[Table], format: str = "md") -> str:
    """The tables in one of FORMATS. Raises HarnessError for another format."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS, "for example: harness table --format md")
    return FORMATS[format](tables)


def markdown(tables: Sequence[Table]) -> str:
    parts = []
    for table in tables:
        letters = footnotes(table)
        parts += [f"## {table.title}", _md(table.caption)]
        for section in shown(table):
            parts += [f"### {_md(section.heading)}"]
            parts += [f"Conditions: {_md(section.conditions)}."] if section.conditions else []
            aligned = ["right" if column.numeric else "left" for column in section.columns]
            frame = _frame(section, letters, _MARKDOWN)
            parts.append(frame.to_markdown(index=False, tablefmt="pipe", colalign=aligned, disable_numparse=True))
            parts += [f"Note: {_md(remark)}" for remark in section.remarks]
            parts += [
                f"{_md(caption)}: " + " ".join(f"![{_md(caption)}](<{p.path}>)" for p in pictures)
                for caption, pictures in groupby(section.pictures, key=lambda p: p.caption)
            ]
        parts += (
            ["  \n".join(f"<sup>{letter}</sup> {_md(note)}" for note, letter in letters.items())] if letters else []
        )
        parts += [] if table.sections else ["No runs yet."]
    return "\n\n".join(parts) + "\n"


def csv(tables: Sequence[Table]) -> str:
    """All rows of all tables: bare numbers, seconds, bytes; intervals, the columns in which a row is marked as the
    best, and notes in columns of their own."""
    import pandas

    rows = [row for table in tables for section in table.sections for row in _plain_rows(table, section)]
    if not rows:
        return "table,section,conditions,row,method\n"
    names = list(dict.fromkeys(name for row in rows for name in row))
    last = [name for name in LAST if name in names]
    frame = pandas.DataFrame(rows, columns=[n for n in names if n not in last] + last, dtype=str)
    return frame.to_csv(index=False, lineterminator="\n")


def _plain_rows(table: Table, section: Section) -> list[dict[str, str]]:
    rows = []
    marked = any(cell.best for row in section.rows for cell in row.cells)
    bounds = {j: list(_bounds(row.cells[j] for row in section.rows)) for j in range(len(section.columns))}
    for row in section.rows:
        plain = {
            "table": table.title,
            "section": section.heading,
            "conditions": section.conditions,
            "row": row.kind,
        }
        said: list[str] = []
        for j, (column, cell) in enumerate(zip(section.columns, row.cells, strict=True)):
            name = column.plain or column.title
            plain[name] = cell.plain or cell.text
            plain |= {f"{name} {kind}": _BOUNDS[kind](cell) or MISSING for kind in bounds[j]}
            said += [*column.notes, *cell.notes]
        best = [c.plain or c.title for c, cell in zip(section.columns, row.cells, strict=True) if cell.best]
        plain |= {"best": "; ".join(best)} if marked else {}
        rows.append(plain | {"notes": "; ".join(dict.fromkeys(said))})
    return rows


_BOUNDS: dict[str, Callable[[Cell], str | None]] = {
    "±": lambda cell: cell.half,
    "± of repeats": lambda cell: cell.repeats,
    "low": lambda cell: cell.ends and cell.ends[0],
    "high": lambda cell: cell.ends and cell.ends[1],
}


def _bounds(cells: Iterable[Cell]) -> Iterator[str]:
    """Which columns the intervals of a column need."""
    column = list(cells)
    return (kind for kind, of in _BOUNDS.items() if any(of(cell) is not None for cell in column))


def latex(tables: Sequence[Table]) -> str:
    """Booktabs tables, one `table` per section, for a document that loads booktabs and graphicx."""
    parts = ["% needs \\usepackage{booktabs,graphicx}"]
    for table in tables:
        letters = footnotes(table)
        for section in shown(table):
            frame = _frame(section, letters, _LATEX)
            form = "".join("r" if column.numeric else "l" for column in section.columns)
            body = frame.to_latex(index=False, escape=False, column_format=form).strip()
            said = [f"Conditions: {section.conditions}."] if section.conditions else []
            said += [*section.remarks, table.caption]
            used = {note for c in section.columns for note in c.notes}
            used |= {note for row in section.rows for cell in row.cells for note in cell.notes}
            marks = [f"\\textsuperscript{{{letters[n]}}}~{_tex(n)}" for n in letters if n in used]
            parts += [
                "\\begin{table}",
                "\\centering",
                f"\\caption{{{_tex(table.title)}: {_tex(section.heading)}}}",
                f"\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n{body}}}",
                "\\par\\smallskip\\footnotesize " + " ".join([*map(_tex, said), *marks]),
                "\\end{table}",
            ]
    return "\n".join(parts) + "\n"


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "md": markdown,
    "csv": csv,
    "tex": latex,
    "html": page,
}


@dataclass(frozen=True)
class Writing:
    """How a format writes text as it is, a raised letter, and the best of a column."""

    plain: Callable[[str], str]
    raised: Callable[[str], str]
    bold: Callable[[str], str]


def _frame(section: Section, letters: Mapping[str, str], writing: Writing) -> pandas.DataFrame:
    """The section as text, with the letters of its footnotes."""
    import pandas

    def text(said: str, notes: Sequence[str], best: bool = False) -> str:
        written = writing.bold(writing.plain(said)) if best else writing.plain(said)
        return written + (writing.raised(",".join(letters[note] for note in notes)) if notes else "")

    head = [text(column.title, column.notes) for column in section.columns]
    rows = [[text(cell.text, cell.notes, cell.best) for cell in row.cells] for row in section.rows]
    return pandas.DataFrame(rows, columns=head, dtype=str)


def _md(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


_TEX = {
    "\\": "\\textbackslash{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": "$\\pm$",
    "≤": "$\\leq$",
    "≥": "$\\geq$",
    "↑": "$\\uparrow$",
    "↓": "$\\downarrow$",
    "×": "$\\times$",
    "·": "$\\cdot$",
    "—": "---",
    "–": "--",
    "“": "``",
    "”": "''",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in " ".join(text.split()))


_MARKDOWN = Writing(_md, lambda letter: f"<sup>{letter}</sup>", lambda text: f"**{text}**")
_LATEX = Writing(_tex, lambda letter: f"\\textsuperscript{{{letter}}}", lambda text: f"\\textbf{{{text}}}")
