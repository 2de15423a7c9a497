"""The page as one file: tables, charts, pictures and records, with no request to anywhere.

A policy in the page allows its own script and style, by their digests, and nothing else; what records say is text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.page import charts, details
from harness.page.pictures import Album
from harness.records import EvalRecord, RunRecord
from harness.report import anytime
from harness.report.layout import Cell, Column, Table, footnotes

TITLES = {
    "trade": "Recognition against generation",
    "anytime": "Quality against cost",
    "ledger": "Where the time went",
    "samples": "Samples side by side",
}
WORDS = ("Data", "Size", "Budget")


@dataclass
class Content:
    """What a page is made of. `base` leads from the page's folder to the study's: ".." for STUDY/report."""

    name: str
    summary: Sequence[str]
    tables: Sequence[Table]
    curve: Sequence[anytime.Point]
    album: Album
    base: str = ".."

    @cached_property
    def trades(self) -> list[charts.Trade]:
        return charts.trades(self.tables)

    @cached_property
    def ledgers(self) -> list[charts.Bars]:
        return charts.ledgers(self.tables)


def page(content: Content) -> str:
    """The whole page; equal content gives equal bytes."""
    trades, panels, ledgers = content.trades, charts.panels(content.curve), content.ledgers
    held = {"trade": trades, "anytime": panels, "ledger": ledgers, "samples": content.album.shown}
    known = Known(content.base)

    environment = Environment(
        loader=PackageLoader("harness.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style, script = _source("page.css"), "\n".join(_source(name) for name in ("charts.js", "page.js"))
    template = environment.get_template("page.html")
    shown = {
        "href": known.href,
        "numbers": known.numbers,
        "classes": _classes,
        "name": content.name,
        "summary": content.summary,
        "tables": [_table(i, table) for i, table in enumerate(content.tables)],
        "charts": {part: TITLES[part] for part, entries in held.items() if entries},
        "places": _places(content.tables),
        "pictures": content.album.shown,
        "left_out": list(_left_out(content.album)),
        "base": content.base,
        "style": Markup(style),
        "script": Markup(script),
        "hashes": {"style": _digest(style), "script": _digest(script)},
    }
    # The records that cells name are known once the tables are written: their place in the page is after them.
    gap = "\0"
    before, _, after = template.render(shown, data=gap).rpartition(gap)  # the last one: a record may hold others
    data = {"looks": _looks(trades, panels), "trades": [_trade(t) for t in trades], "records": known.told()}
    data |= {"panels": [_panel(p, panels) for p in panels], "ledgers": [asdict(bars) for bars in ledgers]}
    return before + _json(data) + after


class Known:
    """The records that cells of the page name, each once, in the order in which they are named."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.at: dict[str, int] = {}
        self.records: list[EvalRecord | RunRecord] = []

    def numbers(self, records: Sequence[EvalRecord | RunRecord]) -> str:
        return " ".join(str(self._number(record)) for record in records)

    def _number(self, record: EvalRecord | RunRecord) -> int:
        place = details.place(record)
        if place not in self.at:
            self.at[place] = len(self.records)
            self.records.append(record)
        return self.at[place]

    def href(self, record: EvalRecord | RunRecord) -> str:
        return f"{self.base}/{quote(details.place(record))}"

    def told(self) -> list[dict[str, Any]]:
        return [{"title": details.title(r), "href": self.href(r), "facts": details.facts(r)} for r in self.records]


def _table(i: int, table: Table) -> dict[str, Any]:
    parts = {"title": table.title, "caption": table.caption, "sections": table.sections}
    return parts | {"id": f"table-{i + 1}", "letters": footnotes(table)}


def _classes(column: Column, cell: Cell) -> Markup:
    words = {"number": column.numeric, "flag": cell.flag, "best": cell.best}
    chosen = " ".join(word for word, holds in words.items() if holds)
    return Markup(f' class="{chosen}"') if chosen else Markup()


def _places(tables: Sequence[Table]) -> dict[str, list[str]]:
    """What may be chosen: the words in which sections differ, with their values in the tables' order."""
    sections = [section.of for table in tables for section in table.sections if section.of]
    return {word: list(dict.fromkeys(of[i] for of in sections)) for i, word in enumerate(WORDS)}


def _left_out(album: Album) -> Iterator[str]:
    if album.left:
        yield f"{album.left} more pictures are not in the page, for its size: they lie beside the records."
    if album.missing:
        yield f"{album.missing} pictures that records name are not in the study's folder."


def _looks(trades: Sequence[charts.Trade], panels: Sequence[charts.Panel]) -> dict[str, int]:
    """A colour, a dash and a mark for each name, the same in every chart."""
    names = {spot.name for trade in trades for spot in trade.spots}
    names |= {name for panel in panels for lines in panel.lines.values() for name in lines}
    return {name: i for i, name in enumerate(sorted(names))}


def _trade(trade: charts.Trade) -> dict[str, Any]:
    return asdict(trade) | {"front": trade.front}


def _panel(panel: charts.Panel, panels: Sequence[charts.Panel]) -> dict[str, Any]:
    """With a label of its own: two protocols of one eval are two curves."""
    twins = [other for other in panels if (other.of, other.title) == (panel.of, panel.title)]
    label = panel.title if len(twins) == 1 else f"{panel.title} ({panel.said.partition(';')[0]})"
    return asdict(panel) | {"label": label}


def _json(data: Any) -> str:
    """JSON that stays inside its script element, whatever a record says."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _source(name: str) -> str:
    return files("harness.page").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
