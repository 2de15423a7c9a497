"""Tables as one self-contained page: no script, no request but for the pictures beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from urllib.parse import quote

from harness.report.layout import Section, Table, footnotes, shown

STYLE = """
:root { color-scheme: light dark; --line: #d5d8dd; --soft: #667; --band: #f5f6f8; --warn: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a3d44; --soft: #9aa0ab; --band: #1d1f24; --warn: #ff8a80; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 .25rem; }
h3 { margin: 1.5rem 0 0; font-size: 1.05rem; }
p { margin: .3rem 0; max-width: 65rem; }
.soft { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: left; }
tbody th, td.number { white-space: nowrap; }
th.number, td.number { text-align: right; }
thead th { border-bottom: 2px solid currentColor; }
tbody th { font-weight: 600; position: sticky; left: 0; background: Canvas; }
tr.untrained > *, tr.reference > *, tr.unfinished > *, tr.published > * { background: var(--band); color: var(--soft); }
tr.unfinished > *, tr.published > * { font-style: italic; }
tr.untrained > th, tr.reference > th, tr.unfinished > th, tr.published > th { font-weight: 400; }
td.best { font-weight: 700; }
td.flag { color: var(--warn); font-weight: 600; }
figure { display: inline-block; margin: .6rem 1rem .6rem 0; }
figure img { max-width: 100%; border: 1px solid var(--line); }
figcaption { color: var(--soft); font-size: .9rem; }
""".strip()


def page(tables: Sequence[Table]) -> str:
    body = [line for table in tables for line in _table(table)]
    head = [
        "<!doctype html>",
        '<html lang="en">',
        '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        "<title>Tables</title>",
        f"<style>\n{STYLE}\n</style></head>",
        "<body>",
        "<h1>Tables</h1>",
    ]
    return "\n".join([*head, *body, "</body>", "</html>"]) + "\n"


def _table(table: Table) -> list[str]:
    letters = footnotes(table)
    lines = [f"<h2>{escape(table.title)}</h2>", f'<p class="soft">{escape(table.caption)}</p>']
    for section in shown(table):
        lines += _section(section, letters)
    notes = [f'<p class="soft"><sup>{letter}</sup> {escape(note)}</p>' for note, letter in letters.items()]
    return lines + notes + ([] if table.sections else ["<p>No runs yet.</p>"])


def _section(section: Section, letters: Mapping[str, str]) -> list[str]:
    lines = [f"<h3>{escape(section.heading)}</h3>"]
    lines += [f'<p class="soft">Conditions: {escape(section.conditions)}.</p>'] if section.conditions else []
    lines += ['<div class="wide"><table>', "<thead><tr>"]
    for column in section.columns:
        lines.append(f'<th scope="col"{_class(column.numeric)}>{_text(column.title, column.notes, letters)}</th>')
    lines += ["</tr></thead>", "<tbody>"]
    for row in section.rows:
        first, *others = row.cells
        cells = [f'<th scope="row">{_text(first.text, first.notes, letters)}</th>']
        cells += [
            f"<td{_class(column.numeric, cell.flag, cell.best)}>{_text(cell.text, cell.notes, letters)}</td>"
            for column, cell in zip(section.columns[1:], others, strict=True)
        ]
        lines.append(f'<tr class="{row.kind}">{"".join(cells)}</tr>')
    lines += ["</tbody>", "</table></div>"]
    lines += [f'<p class="soft">{escape(remark)}</p>' for remark in section.remarks]
    for picture in section.pictures:
        caption, path = escape(picture.caption), escape(quote(picture.path))
        image = f'<a href="{path}"><img src="{path}" alt="{caption}" loading="lazy"></a>'
        lines.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return lines


def _class(numeric: bool, flag: bool = False, best: bool = False) -> str:
    words = [word for word, holds in {"number": numeric, "flag": flag, "best": best}.items() if holds]
    return f' class="{" ".join(words)}"' if words else ""


def _text(said: str, notes: Sequence[str], letters: Mapping[str, str]) -> str:
    marks = ",".join(letters[note] for note in notes)
    return escape(said) + (f"<sup>{marks}</sup>" if marks else "")
