"""`harness list`: what is installed, read from cards and catalogue without importing a method where possible."""

from __future__ import annotations

from harness.errors import HarnessError, unknown
from harness.plugins import card, eval_plugins, method_plugins

KINDS = ("methods", "evals", "data", "sizes")


def show(what: str) -> None:
    """Print one listing, or all of the quick ones. Raises HarnessError for an unknown listing."""
    if what not in (*KINDS, "all"):
        raise unknown("listing", what, [*KINDS, "all"])
    if what == "sizes":
        from harness import sizes

        return sizes.show()
    from rich.console import Console

    console = Console()
    for kind in ("methods", "evals", "data") if what == "all" else (what,):
        table, broken = {"methods": _methods, "evals": _evals, "data": _data}[kind]()
        table.title, table.title_justify = kind, "left"
        console.print(table)
        for line in broken:
            console.print(line, style="yellow", highlight=False)
        console.print()


def _table(*columns: str):
    from rich.table import Table

    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def _methods():
    table, broken = _table("name", "title", "paper", "space", "sampling"), []
    for name in sorted(method_plugins()):
        try:
            about = card(name)
        except HarnessError as error:
            broken.append(f"skipped {name}: {error}")
            continue
        paper = f"{about.get('arxiv') or '–'} ({about.get('year', '–')})"
        table.add_row(name, about.get("title", ""), paper, about.get("space", ""), about.get("sampling", ""))
    return table, broken


def _evals():
    table, broken = _table("name", "title", "protocol", "reads"), []
    for name, plugin in sorted(eval_plugins().items()):
        try:
            module = plugin.load()
        except HarnessError as error:
            broken.append(f"skipped {name}: {error}")
            continue
        table.add_row(name, module.TITLE, f"v{module.PROTOCOL}", module.NEEDS)
    return table, broken


def _data():
    from harness.data.catalog import ENTRIES

    table = _table("name", "title", "images", "size", "classes")
    for entry in ENTRIES.values():
        images = f"{entry.train_n:,} + {entry.test_n:,}"
        table.add_row(entry.name, entry.title, images, f"{entry.size} px x {entry.channels}", str(entry.classes))
    return table, ["python -m harness data shows which of them are here"]
