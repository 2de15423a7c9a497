"""How tests of launched studies make tasks, claims, SLURM's programs, and an executor that runs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import store
from harness.launch.folders import Attempts, Batch, Batches, Claim, End, Submitted
from harness.launch.standing import Seen
from harness.launch.tasks import Task
from harness.launch.truth import Truth

PRETRAIN = Task("pretrain", "mae-0", label="mae seed 0", size="nano")
EVALUATE = Task("evaluate", "mae-0", 1.0, (PRETRAIN.name,), "mae seed 0 at 1", "nano")
REFERENCES = Task("references", "digits", label="references of digits")


def batch(name: str, *tasks: Task | str, **changes: object) -> Batch:
    names = [task if isinstance(task, str) else task.name for task in tasks]
    made = Batch(name=name, tasks=names, request={}, code="/nowhere", executor="fake", host="elsewhere", pid=1)
    return made.model_copy(update=changes)


def attempt(
    place: store.Study, task: Task, number: int, end: End | None = None, of: str = "", submitted: bool = True, **changes
) -> Claim:
    """The claim of an attempt that has a batch of its own, with how it ended."""
    name = of or f"b{number}-{task.kind}"
    claim = Claim(attempt=number, batch=name, index=0, **changes)
    Batches(place).write(batch(name, task))
    if submitted:
        Batches(place).write_submitted(name, Submitted(job=str(1000 + number), array=False))
    assert Attempts(place, task).claim(claim)
    if end is not None:
        Attempts(place, task).ended(number, end)
    return claim


@dataclass
class Fake:
    """An executor: `seen` says what it knows of each job, `submitted` has what it was given."""

    place: store.Study
    seen: dict[tuple[str, int], Seen] = field(default_factory=dict)
    submitted: list[tuple[Batch, list[int], str, object]] = field(default_factory=list)
    cancelled: list[Claim] = field(default_factory=list)
    refuse: Callable[[Batch], Exception | None] = lambda batch: None
    largest: int = 1000
    ids: bool = True  # whether a batch has its id as soon as it is submitted
    name: str = "fake"
    chains: bool = True

    def look(self, batches: Iterable[str]) -> Callable[[Claim], Seen | None]:
        return lambda claim: self.seen.get((claim.batch, claim.index))

    def submit(self, batch: Batch, attempts: Sequence[int], stage: str, after: object = None) -> Submitted:
        error = self.refuse(batch)
        if error is not None:
            raise error
        self.submitted.append((batch, list(attempts), stage, after))
        submitted = Submitted(job=str(len(self.submitted)), array=len(attempts) > 1)
        Batches(self.place).write_submitted(batch.name, submitted)
        for index in range(len(attempts)):
            self.seen[batch.name, index] = Seen(True, word="pending")
        return submitted

    def after(self, stage: str, batches: Sequence[str], matching: bool) -> tuple[str, list[str]] | None:
        known = [name for name in batches if self.ids and Batches(self.place).submitted(name)]
        return ("aftercorr" if matching else "afterany", known) if known else None

    def most(self) -> int:
        return self.largest

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        return

    def cancel(self, claims: Iterable[Claim]) -> list[str]:
        self.cancelled += claims
        return []


@dataclass(frozen=True)
class Told(Truth):
    """A truth that is told which tasks are complete, by name."""

    complete_ones: set[str] = field(default_factory=set)

    def complete(self, task: Task) -> bool:
        return task.name in self.complete_ones


def ended_process() -> int:
    """The number of a process that was."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def programs(folder: Path, monkeypatch, **scripts: str) -> Path:
    """Shell scripts as programs, first on the PATH; each writes the words it was called with to NAME.calls."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in scripts.items():
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.calls\n{text}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def called(folder: Path, name: str) -> list[str]:
    path = folder / f"{name}.calls"
    return path.read_text().splitlines() if path.exists() else []
