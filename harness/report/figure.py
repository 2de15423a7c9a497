"""Figures for papers: equal figures are equal files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from harness.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("-", "--", ":", "-.")  # so that lines that coincide, as of readers of one pre-training, are all seen


def panels(count: int, width: float = 4.6, height: float = 3.4, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels in rows of `columns` at most, each of that size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    places = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for place in places[count:]:
        place.set_axis_off()
    return figure, places[:count]


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG or an SVG, by the path's suffix: with no date, no random ids, and text as shapes."""
    import matplotlib

    form = path.suffix[1:]
    content = io.BytesIO()
    metadata = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": "recognise-and-draw", "svg.fonttype": "path"}):
        figure.savefig(content, format=form, dpi=120, metadata=metadata)
    write_atomic(path, content.getvalue())
    return path
