"""Rows before they have a form: the records behind each, and what those say in words."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness import hits
from harness.difference import Measured
from harness.records import EvalRecord, Number
from harness.report.format import MISSING
from harness.report.layout import Kind
from harness.report.sections import Records, Trial
from harness.stats import mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAW_LABELS = "saw labels in pre-training: no rival of the label-free rows"
FLOOR = "raw pixels"  # what a representation has to beat; "real images" are a bound, not a rival


@dataclass(frozen=True, order=True)
class Place:
    """Where a number belongs. Different titles never share a column, nor do different evals or data sets."""

    eval: str
    dataset: str
    title: str


@dataclass
class Line:
    """A row before it has a form: the records behind it, one mapping per seed."""

    kind: Kind
    label: str
    seeds: str = MISSING
    records: list[Records] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    trials: list[Trial] = field(default_factory=list)
    state: str = ""  # what stands in place of numbers
    rivals: dict[str, Line] = field(default_factory=dict)
    stated: dict[Place, float] = field(default_factory=dict)  # by others, where the row is of published numbers

    def evals(self, place: Place) -> list[EvalRecord]:
        found = (seed.get((place.eval, place.dataset)) for seed in self.records)
        return [r for r in found if r and any(n.title == place.title for n in r.numbers.values())]

    def numbers(self, place: Place) -> list[Number]:
        return [n for r in self.evals(place) for n in r.numbers.values() if n.title == place.title]

    def measured(self, place: Place) -> Measured:
        """The number of each seed, with which test images were guessed right where every record knows."""
        values: dict[Hashable, float] = {}
        right: dict[Hashable, NDArray[np.float64]] = {}
        for i, record in enumerate(self.evals(place)):
            number = next(n for n in record.numbers.values() if n.title == place.title)
            seed: Hashable = i if record.cell is None else record.cell.seed
            seed = (seed, i) if seed in values else seed  # several runs of one seed
            values[seed] = number.value
            if number.hits is not None:
                right[seed] = hits.share(number.hits, number.n)
        return Measured(values, right if right.keys() == values.keys() else None)

    def mean(self, place: Place) -> float | None:
        numbers = self.numbers(place)
        return mean([n.value for n in numbers]) if numbers else None


def notes(trials: Iterable[Trial]) -> tuple[str, ...]:
    """What the runs say of themselves, and a warning where one seed stands for several runs."""
    said = [SAW_LABELS for trial in trials if trial.run.saw_labels]
    said += [note for trial in trials for note in trial.run.notes]
    seeds = [trial.run.cell.seed for trial in trials]
    if len(set(seeds)) < len(seeds):
        said.append("several runs of one seed: the interval is too narrow")
    return tuple(dict.fromkeys(said))


def state(trial: Trial) -> str:
    """The state as a table says it, with how far the run is where its record knows."""
    run = trial.run
    under_way = run.state in ("running", "interrupted") and run.spend.share > 0
    return f"{run.state} {100 * run.spend.share:.0f}%" if under_way else run.state


def per_eval(records: Iterable[Records], text: Callable[[EvalRecord], str | None]) -> str:
    """What `text` says of each eval; the evals are named where they differ."""
    found: dict[str, set[str]] = {}
    for seed in records:
        for (name, _), record in seed.items():
            said = text(record)
            if said is not None:
                found.setdefault(name, set()).add(said)
    texts = {name: ", ".join(sorted(said)) for name, said in sorted(found.items())}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name}: {said}" for name, said in texts.items()) or MISSING


def seeds_text(finished: list[Trial], all_of_them: list[Trial]) -> str:
    if all(trial.run.released for trial in all_of_them):
        return MISSING  # we drew no seed
    return str(len(finished)) if finished == all_of_them else f"{len(finished)} of {len(all_of_them)}"
