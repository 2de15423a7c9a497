"""The grid: every tap a method has, layers times noise levels, and the linear probe at the best of them.

Diffusion papers read one block at one noise level, found on a grid (DDAE: card ddae, section 6; scored on the test part
there). Here the whole grid passes through streaming ridge regression, one pass of the network a noise level, is scored
on the select part, and only the tap it chose meets the test part. Grids differ in size, so this is each method at its
best reading and no matched comparison: the eval `linear` is that, with as many taps for each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evals import linear

if TYPE_CHECKING:
    from pathlib import Path

    from harness.evaluation import Context, Outcome

TITLE = "linear probe at the best of all taps"
PROTOCOL = 1 + linear.PROTOCOL  # its own, and its probe's
NEEDS = "features"
FULL_ONLY = True

PICTURE = "grid.png"


@dataclass(frozen=True)
class Config:
    probe: linear.Config = field(default_factory=lambda: linear.Config(taps=0))

    def __post_init__(self) -> None:
        if self.probe.taps:
            raise ValueError("a grid is all taps: grid.probe.taps is 0; for the first few there is the eval linear")


def recipe(size: str) -> Config:
    """The same for every size."""
    return Config()


def evaluate(context: Context, config: Config) -> Outcome | None:
    """None on snapshots, for which it is too dear."""
    from dataclasses import replace

    if context.cheap:
        return None
    found = linear.evaluate(context, config.probe)
    scores = found.chosen["tap_scores"]
    note = f"chosen from all {len(scores)} of the method's taps, where others have more or fewer; {linear.NOTE}"
    title = ("linear probe", "linear probe at the best of all taps")
    numbers = {
        key.replace("linear", "grid"): number.model_copy(update={"title": number.title.replace(*title), "note": note})
        for key, number in found.numbers.items()
    }
    draw(scores, found.chosen["tap"], context.pictures / PICTURE)
    return replace(found, numbers=numbers, pictures=[PICTURE])


def draw(scores: dict[str, float], chosen: str, path: Path) -> None:
    """A map of `scores` (top-1 % on select, by tap), layers down and noise levels across, the chosen one framed."""
    import io

    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from harness.files import write_atomic

    parts = {tap: (*tap.partition("@")[::2],) for tap in scores}
    layers = sorted({layer for layer, _ in parts.values()}, key=_natural)
    levels = sorted({level for _, level in parts.values()}, key=_natural)
    cells = np.full((len(layers), len(levels)), np.nan)
    figure = Figure((1.6 + 0.9 * len(levels), 1.2 + 0.34 * len(layers)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    low, high = min(scores.values()), max(scores.values())
    for tap, (layer, level) in parts.items():
        row, column = layers.index(layer), levels.index(level)
        cells[row, column] = scores[tap]
        ink = "white" if scores[tap] > low + 0.6 * (high - low) else "black"  # on the colour map's dark end
        axes.text(column, row, f"{scores[tap]:.1f}", ha="center", va="center", fontsize=8, color=ink)
        if tap == chosen:
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=2))
    axes.imshow(cells, cmap="YlGn", aspect="auto")
    axes.set_xticks(range(len(levels)), [level or "clean" for level in levels])
    axes.set_yticks(range(len(layers)), layers)
    axes.set_xlabel("noise level")
    axes.set_title("ridge, top-1 % on select", fontsize=9)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


def _natural(text: str) -> tuple[str, int]:
    """Sorts block2 before block10."""
    head = text.rstrip("0123456789")
    return head, int(text[len(head) :] or 0)
