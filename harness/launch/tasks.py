"""A study as tasks: pretrain a run, evaluate one of its snapshots, evaluate references, make the tables.

A task is idempotent: it asks the store what is done and does the rest. Its name is its place in the study's folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from harness.plan.planned import Planned
    from harness.resolve import Job
    from harness.study import Study

Stage = Literal["pretrain", "evaluate", "references", "tables"]
ORDER: tuple[Stage, ...] = ("pretrain", "evaluate", "references", "tables")


@dataclass(frozen=True)
class Task:
    """One job's worth of work. `key` is the run's, or the data set's for references."""

    stage: Stage
    key: str = ""
    share: float | None = None  # evaluate: of which snapshot
    needs: tuple[str, ...] = ()  # names of tasks that come before
    label: str = ""
    size: str = ""  # of the cell: jobs of one size are of one shape

    @property
    def kind(self) -> str:
        """The task among those of its key: `pretrain`, `evaluate-1.0000`."""
        return self.stage if self.share is None else f"{self.stage}-{self.share:.4f}"

    @property
    def name(self) -> str:
        return f"{self.kind} {self.key}".strip()

    @property
    def level(self) -> tuple[str, int, str, str]:
        """Tasks of one level go into one array: the same stage, snapshot, depth and shape."""
        return self.stage, len(self.needs), self.kind, self.size


def parse(name: str) -> Task:
    """The task of that name, without what it needs and what it is called for people."""
    kind, _, key = name.partition(" ")
    stage, _, share = kind.partition("-")
    return Task(stage, key, float(share) if share else None)


def graph(study: Study, todo: Collection[Job | Planned]) -> list[Task]:
    """Every task of the study but the tables, each after what it needs.

    Methods that read one pre-training need that of their source, and its evaluation: what they would find again is
    taken over from there.
    """
    runs = {job.key: job for job in [*(job.source for job in todo if job.source), *todo]}
    pretraining = [
        Task("pretrain", job.key, label=job.label, size=job.cell.size) for job in runs.values() if job.source is None
    ]
    asked = {job.key for job in todo}
    evaluating = [task for job in todo for task in _evaluations(job, asked)]
    references = [
        Task("references", name, label=f"references of {name}", size=study.size[0])
        for name in dict.fromkeys(job.cell.dataset for job in todo)
    ]
    return [*pretraining, *evaluating, *references]


def _evaluations(job: Job | Planned, asked: Collection[str]) -> Iterable[Task]:
    for share in shares(job):
        before = [Task("pretrain", (job.source or job).key)]
        if job.source is not None and job.source.key in asked:
            before.append(Task("evaluate", job.source.key, share))
        needs = tuple(task.name for task in before)
        yield Task("evaluate", job.key, share, needs, f"{job.label} at {share:g}", job.cell.size)


def shares(job: Job | Planned) -> list[float]:
    """The snapshots that are evaluated: the last one first, which every table needs."""
    return sorted({0.0, 1.0, *job.train.snapshots}, reverse=True)
