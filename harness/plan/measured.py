"""What earlier runs and evals took: the records that estimates rest on, and nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from harness import store
from harness.config import plain
from harness.errors import HarnessError
from harness.plan.planned import Planned
from harness.plugins import load_eval
from harness.records import Environment, EvalRecord, RunRecord
from harness.study import Study


@dataclass(frozen=True)
class Guess:
    """Seconds as the median of records; None where there is no record."""

    seconds: float | None
    records: int = 0
    others: bool = False  # of other methods, as there is none of this one

    def times(self, factor: float) -> Guess:
        return Guess(None if self.seconds is None else self.seconds * factor, self.records, self.others)


NOTHING = Guess(None)


@dataclass
class Measured:
    """Records of every study under one folder that fit what is planned: the same kind of device, no copies of others'.

    A record whose environment is not known counts.
    """

    runs: dict[tuple[str, str, str], list[RunRecord]] = field(default_factory=lambda: defaultdict(list))
    evals: dict[tuple, list[EvalRecord]] = field(default_factory=lambda: defaultdict(list))
    unreadable: int = 0

    def run(self, job: Planned, value: Callable[[RunRecord], float | None]) -> Guess:
        """The median `value` of finished runs of the job's method, data set and size; those it is None of apart."""
        cell = job.cell
        return _median([value(run) for run in self.runs[cell.method, cell.dataset, cell.size]])

    def eval(self, name: str, config: Any, job: Planned, quick: bool) -> Guess:
        """Of the eval with these settings, on the job's method or else on any, for one data set and size."""
        cell = job.cell
        found = _alike(self.evals[name, quick, cell.dataset, cell.size], name, config)
        own = [record for record in found if record.cell.method == cell.method]
        guess = _median([sum(record.ledger.values()) for record in own or found])
        return Guess(guess.seconds, guess.records, others=bool(found) and not own)

    def reference(self, name: str, config: Any, title: str, dataset: str, size: str) -> Guess:
        found = _alike(self.evals[name, title, dataset, size], name, config)
        return _median([sum(record.ledger.values()) for record in found])


def _alike(records: list[EvalRecord], name: str, config: Any) -> list[EvalRecord]:
    protocol, settings = load_eval(name).PROTOCOL, plain(config)
    return [record for record in records if (record.protocol, record.config) == (protocol, settings)]


def _median(values: Iterable[float | None]) -> Guess:
    known = [value for value in values if value is not None]
    return Guess(median(known), len(known)) if known else NOTHING


def measured(out: Path, study: Study, on_gpu: bool) -> Measured:
    """Read the records under `out` that may bear on the study."""
    found = Measured()
    sized = tuple(f"-{size}-" for size in study.size)  # in the names of folders of runs and references
    for path in sorted(out.glob("*/runs/*/run.json")):
        run = _read(RunRecord, path, found) if any(size in path.parent.name for size in sized) else None
        if run is not None and run.state == "finished" and _fits(run, on_gpu):
            found.runs[run.cell.method, run.cell.dataset, run.cell.size].append(run)
    for name in study.evals:
        for path in sorted([*out.glob(f"*/runs/*/evals/*/{name}.json"), *out.glob(f"*/references/*/*/{name}.json")]):
            whose = path.parents[2].name if path.parents[1].name == "evals" else f"{path.parent.name}-"
            record = _read(EvalRecord, path, found) if any(size in whose for size in sized) else None
            if record is not None and _fits(record, on_gpu):
                found.evals[_place(record)].append(record)
    return found


def _fits(record: RunRecord | EvalRecord, on_gpu: bool) -> bool:
    """Whether it was measured on such a device, and is no copy of another's."""
    return record.shared is None and _on_gpu(record.environment) in (on_gpu, None)


def _place(record: EvalRecord) -> tuple:
    if record.reference is not None:
        return record.eval, record.reference, record.dataset, record.size
    return record.eval, record.cheap, record.dataset, record.cell.size if record.cell else record.size


def _read(kind: type, path: Path, found: Measured) -> Any:
    try:
        return store.read_as(kind, path)
    except HarnessError:
        found.unreadable += 1
        return None


def _on_gpu(environment: Environment | None) -> bool | None:
    """Whether it was measured on a GPU; None where nobody wrote that down."""
    return None if environment is None else not environment.device.endswith(" cores)")  # as machine.device_name says
