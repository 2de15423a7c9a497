"""The anytime curve: quality against the share of the budget spent, from cheap evals of a run's snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.records import EvalRecord, RunRecord
from harness.report import format as fmt
from harness.report.figure import DASHES, panels, save
from harness.report.sections import Trial, gather, label, mark, of_run, split
from harness.stats import mean_interval

AXES = {  # what is paid along the curve -> the field of a Point, and what is written below the axis
    "share": ("share", "share of the budget"),
    "gpu-h": ("device_s", "device time, {}"),
    "flop": ("flop", "training FLOP"),
    "img": ("img", "images seen"),
}


@dataclass(frozen=True, order=True)
class Point:
    """One number of one snapshot; device seconds, images and FLOP are the run's meter when it was taken."""

    dataset: str
    size: str
    budget: str
    eval: str
    protocol: int
    title: str
    method: str
    seed: int
    share: float
    device_s: float | None
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
    for trial, who in _named(trials):
        cell = trial.run.cell
        for record in trial.evals:  # the newest last
            if not record.cheap or record.share is None:
                continue
            at = trial.run.snapshots.get(f"{record.share:.4f}")
            paid = (None, None, None) if at is None else (at.device_s, at.img, at.flop)
            for number in record.numbers.values():
                place = (cell.dataset, cell.size, cell.budget, record.eval, record.protocol, number.title)
                part = "test" if record.test_opened else "held-out train"
                seen = (who, cell.seed, record.share, *paid, number.value, number.better, number.n, part)
                found[trial.run.key, record.eval, record.share, number.title] = Point(*place, *seen)
    return sorted(found.values(), key=lambda p: (*_panel(p), p.method, p.seed, p.share, p.value))


def _named(trials: Iterable[Trial]) -> Iterator[tuple[Trial, str]]:
    """Each run with the name of its row: runs that differ in more than the seed are lines of their own."""
    for group in split(trials, lambda trial: of_run(trial.run)):
        apart = f" ({', '.join(group.apart)})" if group.apart else ""
        for trial in group.trials:
            yield trial, label(trial, group, {}) + mark(trial.run) + apart


def to_csv(curve: Sequence[Point]) -> str:
    """The points as CSV, a row each; an em dash where nothing was measured."""
    import pandas

    names = [field.name for field in fields(Point)]
    frame = pandas.DataFrame([asdict(p) for p in curve], columns=names, dtype=object)
    return frame.to_csv(index=False, lineterminator="\n", na_rep="—", float_format="%.10g")


def plot(curve: Sequence[Point], path: Path, axis: str = "share", titles: Mapping[str, str] | None = None) -> Path:
    """A PNG or SVG with one panel per data set, size, budget and number; a line per method, a band over its seeds.

    Raises HarnessError when there is nothing to draw.
    """
    if axis not in AXES:
        raise HarnessError(f"no axis {axis!r}", f"one of {', '.join(AXES)}")
    numbers = sorted({_panel(point) for point in curve})
    if not numbers:
        raise HarnessError(
            "no snapshots were evaluated", "quick evals of a run's snapshots", "python -m harness eval STUDY"
        )
    figure, places = panels(len(numbers))
    looks = {method: (f"C{i}", DASHES[i % len(DASHES)]) for i, method in enumerate(sorted({p.method for p in curve}))}
    lines: dict[str, Any] = {}
    for place, panel in zip(places, numbers, strict=True):
        lines |= _draw(place, [p for p in curve if _panel(p) == panel], axis, looks)
    names = sorted(lines)
    labels = [(titles or {}).get(name, name) for name in names]
    across = 2 * min(3, len(numbers)) + 1
    figure.legend([lines[name] for name in names], labels, loc="outside lower center", ncols=across, fontsize=8)
    return save(figure, path)


def averaged(seeds: Sequence[Point], axis: str) -> list[tuple[float, float, float | None]]:
    """What was paid, the quality and the half-width of its interval, over the seeds of each snapshot."""
    field, _ = AXES[axis]
    known = [p for p in seeds if getattr(p, field) is not None]
    line = []
    for share in sorted({p.share for p in known}):
        here = [p for p in known if p.share == share]
        paid, _ = mean_interval([getattr(p, field) for p in here])
        line.append((paid, *mean_interval([p.value for p in here])))
    return line


def _panel(point: Point) -> tuple[str, str, str, str, int, str]:
    return (point.dataset, point.size, point.budget, point.eval, point.protocol, point.title)


def _draw(place: Any, panel: list[Point], axis: str, looks: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Draw the panel on a matplotlib Axes; each method's line."""
    drawn = {}
    field, below = AXES[axis]
    unit = fmt.time_unit(getattr(p, field) or 0.0 for p in panel)
    scale = fmt.TIME_UNITS[unit] if field == "device_s" else 1.0
    for method in sorted({p.method for p in panel}):
        color, dash = looks[method]
        line = averaged([p for p in panel if p.method == method], axis)
        if not line:
            continue
        xs, means, halves = zip(*((paid / scale, mean, half or 0.0) for paid, mean, half in line), strict=True)
        (drawn[method],) = place.plot(xs, means, marker="o", markersize=4, color=color, linestyle=dash)
        low, high = ([m + sign * h for m, h in zip(means, halves, strict=True)] for sign in (-1, 1))
        place.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
    first = panel[0]
    place.set_title(f"{first.dataset}, {first.size}, {first.budget}", fontsize=10)
    place.set_xlabel(below.format(unit))
    place.set_ylabel(f"{first.title} ({first.better} is better)")
    place.annotate(f"{first.n} images of {first.part}", (0.98, 0.02), xycoords="axes fraction", ha="right", fontsize=8)
    place.grid(alpha=0.3)
    return drawn
