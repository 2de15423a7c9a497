"""The page's charts as PNG and SVG, for papers: a panel for each data set, size and budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.page.charts import Bars, Trade
from harness.report import anytime
from harness.report.figure import panels, save

FORMS = ("png", "svg")
MARKS = "os^Dv*Xp"
HATCH = "////"


def draw(trades: Sequence[Trade], curve: Sequence[anytime.Point], ledgers: Sequence[Bars], folder: Path) -> list[Path]:
    """Write whatever there is something to draw of; returns the files."""
    made: list[Path] = []
    first = list({trade.heading: trade for trade in reversed(trades)}.values())[::-1]
    for form in FORMS:
        if first:
            made.append(trade_figure(first, folder / f"recognition-generation.{form}"))
        for axis in _axes(curve):
            made.append(anytime.plot(curve, folder / f"anytime-{axis}.{form}", axis))
        if ledgers:
            made.append(ledger_figure(ledgers, folder / f"ledger.{form}"))
    return sorted(made)


def _axes(curve: Sequence[anytime.Point]) -> Iterator[str]:
    for axis, (field, _) in anytime.AXES.items():
        if any(getattr(point, field) is not None for point in curve):
            yield axis


def trade_figure(trades: Sequence[Trade], path: Path) -> Path:
    """The first number of recognition against the first of generation; up and right is better."""
    figure, places = panels(len(trades), height=3.8)
    names = sorted({spot.name for trade in trades for spot in trade.spots})
    looks = {name: (f"C{i}", MARKS[i % len(MARKS)]) for i, name in enumerate(names)}
    for place, trade in zip(places, trades, strict=True):
        _trade(place, trade, looks)
    handles = [places[0].plot([], [], color=color, marker=mark, linestyle="")[0] for color, mark in looks.values()]
    figure.legend(handles, names, loc="outside lower center", ncols=min(6, 2 * len(trades) + 1), fontsize=8)
    return save(figure, path)


def _trade(place: Any, trade: Trade, looks: Mapping[str, tuple[str, str]]) -> None:
    spots = {spot.name: spot for spot in trade.spots}
    front = [spots[name] for name in trade.front]
    place.plot([spot.x for spot in front], [spot.y for spot in front], color="0.6", linestyle=":", linewidth=1)
    for spot in trade.spots:
        color, mark = looks[spot.name]
        place.errorbar(spot.x, spot.y, spot.y_half, spot.x_half, color=color, marker=mark, markersize=6, capsize=2)
    for better, turn in ((trade.x_better, place.invert_xaxis), (trade.y_better, place.invert_yaxis)):
        if better == "lower":
            turn()
    place.set_title(trade.heading, fontsize=9)
    place.set_xlabel(f"{trade.x} ({trade.x_better} is better)", fontsize=8)
    place.set_ylabel(f"{trade.y} ({trade.y_better} is better)", fontsize=8)
    place.grid(alpha=0.3)


def ledger_figure(ledgers: Sequence[Bars], path: Path) -> Path:
    """Stacked bars of every account; hatched ones are not charged."""
    rows = max(len(ledger.bars) for ledger in ledgers)
    figure, places = panels(len(ledgers), width=6.0, height=1.4 + 0.32 * rows, columns=2)
    accounts = list(dict.fromkeys(name for ledger in ledgers for name in ledger.accounts))
    charged = {name for ledger in ledgers for name in ledger.charged}
    looks = {name: {"color": f"C{i}", "hatch": None if name in charged else HATCH} for i, name in enumerate(accounts)}
    for place, ledger in zip(places, ledgers, strict=True):
        names = list(ledger.bars)
        left = [0.0] * len(names)
        for i, account in enumerate(ledger.accounts):
            widths = [ledger.bars[name][i] for name in names]
            place.barh(names, widths, left=left, edgecolor="white", linewidth=0.5, **looks[account])
            left = [a + b for a, b in zip(left, widths, strict=True)]
        place.invert_yaxis()
        place.set_title(ledger.heading, fontsize=9)
        place.set_xlabel(f"time, {ledger.unit}")
    handles = [places[0].barh([0], [0], edgecolor="white", **looks[name]) for name in accounts]
    labels = [f"{name} (charged)" if name in charged else name for name in accounts]
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    return save(figure, path)
