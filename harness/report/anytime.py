"""The anytime curve: quality against the share of the budget spent, from cheap evals of a run's snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.files import write_atomic
from harness.records import EvalRecord, RunRecord
from harness.report.sections import gather, mark
from harness.stats import mean_interval

DASHES = ("-", "--", ":", "-.")  # so that curves that coincide, as of readers of one pre-training, are all seen
AXES = {"share": "share of the budget", "img": "images seen", "flop": "training FLOP"}


@dataclass(frozen=True, order=True)
class Point:
    """One number of one snapshot; images and FLOP are the run's meter when it was taken."""

    dataset: str
    size: str
    budget: str
    eval: str
    protocol: int
    title: str
    method: str
    seed: int
    share: float
    img: float | None
    flop: float | None
    value: float
    better: str
    n: int  # images behind the value
    part: str  # that they are of: "held-out train", or "test" for records of old protocols


def points(runs: Iterable[RunRecord], evals: Iterable[EvalRecord]) -> list[Point]:
    """Every number of the cheap evals in fixed order; the newer one where a snapshot was evaluated twice."""
    trials, _, _ = gather(runs, evals)
    found: dict[tuple[object, ...], Point] = {}
    for trial in trials:
        cell, who = trial.run.cell, trial.run.cell.method + mark(trial.run)
        for record in trial.evals:  # the newest last
            if not record.cheap or record.share is None:
                continue
            at = trial.run.snapshots.get(f"{record.share:.4f}")
            img, flop = (None, None) if at is None else (at.img, at.flop)
            for number in record.numbers.values():
                place = (cell.dataset, cell.size, cell.budget, record.eval, record.protocol, number.title)
                part = "test" if record.test_opened else "held-out train"
                seen = (who, cell.seed, record.share, img, flop, number.value, number.better, number.n, part)
                found[trial.run.key, record.eval, record.share, number.title] = Point(*place, *seen)
    return sorted(found.values(), key=lambda p: (*_panel(p), p.method, p.seed, p.share, p.value))


def to_csv(curve: Sequence[Point]) -> str:
    """The points as CSV, a row each; an em dash where nothing was measured."""
    import pandas

    names = [field.name for field in fields(Point)]
    frame = pandas.DataFrame([asdict(p) for p in curve], columns=names, dtype=object)
    return frame.to_csv(index=False, lineterminator="\n", na_rep="—", float_format="%.10g")


def plot(curve: Sequence[Point], path: Path, axis: str = "share", titles: Mapping[str, str] | None = None) -> Path:
    """A PNG with one panel per data set, size, budget and number; a line per method, a band over its seeds.

    Raises HarnessError when there is nothing to draw.
    """
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if axis not in AXES:
        raise HarnessError(f"no axis {axis!r}", f"one of {', '.join(AXES)}")
    panels = sorted({_panel(point) for point in curve})
    if not panels:
        raise HarnessError(
            "no snapshots were evaluated", "quick evals of a run's snapshots", "python -m harness eval STUDY"
        )
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    looks = {method: (f"C{i}", DASHES[i % len(DASHES)]) for i, method in enumerate(sorted({p.method for p in curve}))}
    lines: dict[str, Any] = {}
    for place, panel in zip(places, panels, strict=False):
        lines |= _draw(place, [p for p in curve if _panel(p) == panel], axis, looks)
    for place in places[len(panels) :]:
        place.set_axis_off()
    names = sorted(lines)
    labels = [(titles or {}).get(name, name) for name in names]
    figure.legend(
        [lines[name] for name in names], labels, loc="outside lower center", ncols=2 * columns + 1, fontsize=8
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    write_atomic(path, picture.getvalue())
    return path


def _panel(point: Point) -> tuple[str, str, str, str, int, str]:
    return (point.dataset, point.size, point.budget, point.eval, point.protocol, point.title)


def _draw(place: Any, panel: list[Point], axis: str, looks: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Draw the panel on a matplotlib Axes; each method's line."""
    drawn = {}
    for method in sorted({p.method for p in panel}):
        color, dash = looks[method]
        mine = [p for p in panel if p.method == method and getattr(p, axis) is not None]
        line = []
        for share in sorted({p.share for p in mine}):
            here = [p for p in mine if p.share == share]
            across, _ = mean_interval([getattr(p, axis) for p in here])
            line.append((across, *mean_interval([p.value for p in here])))
        if not line:
            continue
        xs, means, halves = zip(*line, strict=True)
        (drawn[method],) = place.plot(xs, means, marker="o", markersize=4, color=color, linestyle=dash)
        low = [m - (h or 0) for m, h in zip(means, halves, strict=True)]
        high = [m + (h or 0) for m, h in zip(means, halves, strict=True)]
        place.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
    first = panel[0]
    place.set_title(f"{first.dataset}, {first.size}, {first.budget}", fontsize=10)
    place.set_xlabel(AXES[axis])
    place.set_ylabel(f"{first.title} ({first.better} is better)")
    place.annotate(f"{first.n} images of {first.part}", (0.98, 0.02), xycoords="axes fraction", ha="right", fontsize=8)
    place.grid(alpha=0.3)
    return drawn
