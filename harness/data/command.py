"""What `harness data` does: list what is there, fetch, verify. Imports neither torch nor numpy until it must."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from harness.data import catalog
from harness.data.fetch import Available, available, fetch, verify
from harness.errors import HarnessError, unknown

ACTIONS = ("list", "fetch", "verify")


class Row(NamedTuple):
    """One data set as `harness data` prints it."""

    name: str
    title: str
    images: str
    size: str
    where: str  # where it lies, or what to do to have it
    note: str


def list_rows(data_dir: Path | None = None) -> list[Row]:
    """One row for each name that `--dataset` takes, and for the data sets that evals have of their own."""
    rows = [_row(name, item) for name, item in zip(catalog.ENTRIES, available(data_dir), strict=True)]
    how = "PATH/train/CLASS/*.jpg with test/ or val/; or PATH/CLASS/*.jpg"
    size = f"{catalog.FOLDER_SIZE} px"
    rows.append(Row("folder:PATH", "any image folder", "", size, how, "folder:PATH?size=96&mirror=0 sets both"))
    masks = catalog.CAMVID
    found = catalog.locate(masks, data_dir)
    missing = f"missing: set HARNESS_DATA to the folder that holds {masks.places[0]}/{masks.files[0]}"
    note = f"for segmentation.data, which also takes voc:PATH, ade:PATH, masks:PATH; {masks.note}"
    counts = f"{masks.train_n:,} + {masks.test_n:,}"
    return [*rows, Row(masks.name, masks.title, counts, "masks", str(found.where) if found else missing, note)]


def _row(name: str, item: Available) -> Row:
    entry = item.entry
    where = {
        "embedded": "inside scikit-learn",
        "found": str(item.where),
        "missing": f"missing: {catalog.how_to_get(entry)}",
    }[item.status]
    return Row(name, entry.title, f"{entry.train_n:,} + {entry.test_n:,}", f"{entry.size} px", where, entry.note)


def run_action(action: str, name: str | None, data_dir: Path | None = None) -> None:
    """`harness data ACTION NAME`, with its output. Raises HarnessError for an unknown action or a missing name."""
    if action not in ACTIONS:
        raise unknown("action", action, ACTIONS, "python -m harness data --help")
    if action == "list":
        _print_rows(list_rows(data_dir))
    elif name is None:
        raise HarnessError(
            f"{action} what?", "the name of a data set", f"python -m harness data {action} fashion-mnist"
        )
    elif action == "fetch":
        _fetch(name, data_dir)
    else:
        files = verify(name, data_dir)
        for file in files:
            print(f"{file.digest[:16]}  {file.file}")
        print(f"{name}: {len(files)} checksums are right" if files else f"{name}: nobody publishes checksums of it")


def _print_rows(rows: list[Row]) -> None:
    """A line for each name, whole names before whole paths; then what there is to know of some of them."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "train + test", "size"):
        table.add_column(title, no_wrap=True)
    table.add_column("where", overflow="fold")
    for row in rows:
        table.add_row(row.name, row.images, row.size, row.where)
    console.print(table)
    console.print()
    for row in rows:
        if row.note:
            console.print(f"{row.name}: {row.note}", style="dim", highlight=False, markup=False, soft_wrap=True)


def _fetch(name: str, data_dir: Path | None) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn()) as progress:
        where = fetch(name, data_dir, progress)
    print(f"{name} lies in {where}" if where else f"{name} is embedded: nothing to fetch")
