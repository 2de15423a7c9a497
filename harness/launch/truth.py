"""What the store says of tasks: whether they are done, and how far they are."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import store
from harness.lacking import evaluated, references_evaluated
from harness.launch.folders import Batches, Claim, read
from harness.launch.tasks import Task, graph
from harness.records import ENDED, RunRecord
from harness.study import Study, build

if TYPE_CHECKING:
    from harness.plan.planned import Planned
    from harness.resolve import Job

TAIL_LINES = 12
TAIL_BYTES = 4000


@dataclass(frozen=True)
class Truth:
    """Answers for one study."""

    study: Study
    place: store.Study
    todo: list[Job] | list[Planned]
    data_dir: Path | None = None
    earlier: dict[str, Study] = field(default_factory=dict)  # runs that another command asked for, and as what

    @classmethod
    def of_folder(cls, place: store.Study, data_dir: Path | None, gpus: int) -> Truth:
        """That of all that was asked for in the folder: by the last command, and by those before it whose runs stay."""
        from harness.resolve import jobs

        asked = place.asked()
        study = build(asked.request)
        todo = jobs(study, data_dir, gpus)
        earlier: dict[str, Study] = {}
        left = set(asked.keys) - {job.key for job in todo}
        while left:
            key = min(left)
            left.remove(key)
            request = _request(place, key)
            if request is None:
                continue
            before = build(request)
            found = [job for job in jobs(before, data_dir, gpus) if job.key in left | {key}]
            todo += found
            earlier |= {job.key: before for job in found}
            left -= earlier.keys()
        return cls(study, place, todo, data_dir, earlier)

    def asked_of(self, key: str) -> Study:
        """The study as the command asked for it that asked for this run."""
        return self.earlier.get(key, self.study)

    def job(self, key: str) -> Job | Planned:
        runs = [job for job in [*self.todo, *(job.source for job in self.todo if job.source)] if job.key == key]
        return runs[0]

    def task(self, name: str) -> Task:
        """The task of that name. Raises KeyError where it is none of the study's."""
        return {task.name: task for task in graph(self.study, self.todo)}[name]

    def complete(self, task: Task) -> bool:
        """Whether the store has everything that the task is to make."""
        if task.stage == "references":
            data = next(job.data for job in self.todo if job.cell.dataset == task.key)
            return references_evaluated(data, self.study, self.place, self.data_dir)
        record = self.record(task.key)
        if task.stage == "pretrain" or record is None or record.state not in ENDED:
            return record is not None and record.state in ENDED
        if record.state == "diverged":
            return True
        return evaluated(self.job(task.key), self.asked_of(task.key), self.place, task.share, self.data_dir)

    def record(self, key: str) -> RunRecord | None:
        path = self.place.run(key).record
        return store.read_as(RunRecord, path) if path.exists() else None


def _request(place: store.Study, key: str) -> dict[str, Any] | None:
    """What the newest command asked for that submitted jobs of the run."""
    names = {claim.batch for path in place.run(key).jobs.glob("[!.]*.json") if (claim := _claim(path)) is not None}
    batches = [batch for name in names if (batch := Batches(place).read(name)) is not None]
    return max(batches, key=lambda batch: batch.at).request if batches else None


def _claim(path: Path) -> Claim | None:
    return read(Claim, path) if re.fullmatch(r".+\.\d{3,}\.json", path.name) else None


def progress(place: store.Study, task: Task) -> int:
    """A number that grows while the task gets further: the step of its last checkpoint, or how many evals are done."""
    if task.stage == "pretrain":
        names = [path.name for path in place.run(task.key).checkpoints.glob("step-*.pt")]
        return max((int(name.split("-")[1]) for name in names), default=0)
    if task.stage == "evaluate":
        folder = place.run(task.key)
        return sum(1 for cheap in (False, True) for _ in folder.evals(task.share, cheap).glob("*.json"))
    return sum(1 for _ in place.references(task.key).path.glob("*/*.json")) if task.key else 0


def logs(place: store.Study, claim: Claim) -> list[Path]:
    """The log files of an attempt, output before errors, of every process of it."""
    batches = Batches(place)
    submitted = batches.submitted(claim.batch)
    if submitted is None:
        return []
    folder = batches.path(claim.batch) / (f"{submitted.job}_{claim.index}" if submitted.array else submitted.job)
    return sorted(folder.glob("*_log.out")) + sorted(folder.glob("*_log.err"))


def log_tail(place: store.Study, claim: Claim) -> str:
    """The last lines that the attempt printed, its errors' where there are any."""
    lines: list[str] = []
    for path in logs(place, claim):
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
        said = [line for line in text.splitlines() if line.strip() and not re.match(r"submitit (INFO|WARNING)", line)]
        lines = said[-TAIL_LINES:] or lines
    return "\n".join(lines)
