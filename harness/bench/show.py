"""Tables of a bench: boxed on a terminal, plain columns in a pipe."""

from __future__ import annotations

from collections.abc import Sequence

PIPE_WIDTH = 120


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print a table, every column but the first to the right, and the notes under it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH, no_color=True)
    shape = box.SIMPLE_HEAD if console.is_terminal else None
    grid = Table(title=title, title_justify="left", box=shape, pad_edge=False)
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    console.print(grid, markup=False)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    console.print()


def line(text: str) -> None:
    """What is going on, while it goes on."""
    print(text, flush=True)
