"""The loop that brings a study to its end: look where every task stands, submit what is missing, look again.

It holds nothing that the study's folder does not hold: it may be left, killed, repeated, or run twice at once.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from harness import store
from harness.errors import HarnessError, said
from harness.files import write_atomic
from harness.launch.folders import Attempts, Batch, Batches, Claim, End, Submitted, batch_name, now
from harness.launch.queue import Unreachable
from harness.launch.standing import OVER, SUBMITTING_S, UNSEEN, Executor, Look, Standing, submitter_lives
from harness.launch.tasks import ORDER, Task, graph
from harness.launch.truth import Truth, log_tail, progress
from harness.lock import refuse_trainer
from harness.pretrain_run import opening
from harness.processes import born
from harness.records import ENDED
from harness.shared import adopt


class Submits(Executor, Protocol):
    """An executor that work is given to."""

    chains: bool  # whether a batch can be told to come after another, and goes on without its command

    def submit(self, batch: Batch, attempts: Sequence[int], stage: str, after: Any = None) -> Submitted: ...
    def after(self, stage: str, batches: Sequence[str], matching: bool) -> Any: ...
    def most(self) -> int: ...
    def wait(self, seconds: float) -> None: ...  # until it is worth a look; the work of this process is done here
    def cancel(self, claims: Iterable[Claim]) -> list[str]: ...
    def close(self) -> None: ...  # the command ends, and with it what cannot go on without it


@dataclass
class Driver:
    """One command's, or one closing job's, work on a study."""

    truth: Truth
    executor: Submits
    code: str  # the frozen copy that jobs run
    tries: int = 3
    rendezvous: str = "tcp"
    say: Callable[[str], None] = print
    inside: str = ""  # the closing job whose work this is; none for a command's
    tasks: list[Task] = field(init=False)
    _cancelled: set[tuple[str, int]] = field(default_factory=set)
    _attempts: dict[str, int] = field(default_factory=dict)  # the last one at each task, at the last look
    _refused: bool = False  # whether the cluster did not take the job that goes on
    closed: bool = False  # whether a job goes on after all others, as the last round saw it
    whole: bool = False  # whether a round was brought to its end: then everything that can be is in the queue

    def __post_init__(self) -> None:
        self.tasks = graph(self.truth.study, self.truth.todo)
        self._by_name = {task.name: task for task in self.tasks}
        self.look = Look(self.place, self.tasks, self.truth.complete, self.executor, self.tries)

    @property
    def place(self) -> store.Study:
        return self.truth.place

    def round(self) -> dict[str, Standing]:
        """Look once, and submit whatever can be; the standings of before that."""
        standings = self.look()
        self._cancel(standings)
        self._record_cancelled(standings)
        made: list[str] = []
        try:
            self.submit(standings, made)
        finally:  # also of what was taken before the cluster refused the rest
            if made and self.executor.chains:
                self.closed = self._submit_closing(made)
        if not made and self.executor.chains:
            self.closed = self._keep_going(standings)
        self.whole = True
        return standings

    def _cancel(self, standings: dict[str, Standing]) -> None:
        """End jobs that a command elsewhere cancelled: it may not reach them, or not have reached the cluster."""
        found = [s for s in standings.values() if s.cancelled and (s.task.name, s.attempt) not in self._cancelled]
        if found:
            claims = [Attempts(self.place, s.task).of(s.attempt) for s in found]
            self.executor.cancel([claim for claim in claims if claim is not None])
            self._cancelled |= {(s.task.name, s.attempt) for s in found}

    # -- submitting ---------------------------------------------------------------------------------------------------

    def submit(self, standings: dict[str, Standing], made: list[str]) -> None:
        """Batches of everything that is missing, and of what can be told to wait for it; their names go to `made`."""
        where: dict[str, Claim] = {}  # of what was submitted just now
        self._attempts = {name: standing.attempt for name, standing in standings.items()}
        missing = [s.task for s in standings.values() if s.state == "missing"]
        for group in _groups(missing):
            most = self.executor.most()
            for start in range(0, len(group), most):
                made += self._submit(group[start : start + most], where, None)
        if self.executor.chains:
            waiting = [s.task for s in standings.values() if s.state == "waiting"]
            for group in _groups(waiting):
                for before, part in self._matching(group, where):
                    after = self.executor.after(part[0].stage, [before], matching=True)
                    if after is not None:  # else what they need has no job id yet
                        made += self._submit(part, where, after)

    def _submit(self, tasks: list[Task], where: dict[str, Claim], after: Any) -> list[str]:
        """Claim the tasks and submit those that are ours; an element whose claim was lost to another ends at once."""
        batch = Batch(
            name=batch_name(tasks[0].stage),
            tasks=[task.name for task in tasks],
            request=self.truth.study.asked(),
            data_dir=None if self.truth.data_dir is None else str(self.truth.data_dir.resolve()),
            code=self.code,
            executor=self.executor.name,
            rendezvous=self.rendezvous,
            **self._submitter(),
            at=now(),
        )
        Batches(self.place).write(batch)
        needs = [None if after is None else self._newest(task.needs[-1], where) for task in tasks]
        claims = [self._claim(task, batch, index, needs[index]) for index, task in enumerate(tasks)]
        if not any(won for _, won in claims):
            return []
        try:
            # A process that trains looks for claims once it has the lock, we for the lock once we have the claims.
            if self.executor.chains:
                refuse_trainer(self.place.path)
            self.executor.submit(batch, [claim.attempt for claim, _ in claims], tasks[0].stage, after)
        except Exception as error:
            if not isinstance(error, Unreachable):  # then it may have worked: the queue is asked for it later
                self._let_go(tasks, claims, error)
            raise
        where.update({task.name: claim for task, (claim, won) in zip(tasks, claims, strict=True) if won})
        many = f"{len(tasks)} jobs" if len(tasks) > 1 else "1 job"
        self.say(f"submitted {batch.name}: {many}{f', after {after}' if after else ''}")
        return [batch.name]

    def _submitter(self) -> dict[str, Any]:
        """This process, as a batch names who submits it."""
        return {"host": socket.gethostname(), "pid": os.getpid(), "born": born(os.getpid())}

    def _let_go(self, tasks: list[Task], claims: list[tuple[Claim, bool]], error: Exception) -> None:
        """Claims of a batch that was refused are over at once."""
        for task, (claim, won) in zip(tasks, claims, strict=True):
            if won:
                end = End(state="failed", kind="void", message=said(error), at=now())
                Attempts(self.place, task).ended(claim.attempt, end)

    def _claim(self, task: Task, batch: Batch, index: int, need: Claim | None) -> tuple[Claim, bool]:
        # After the last one that was looked at: one that another driver has claimed since then is not to get a second.
        number = 1 + self._attempts[task.name]
        claim = Claim(
            attempt=number,
            batch=batch.name,
            index=index,
            reached=progress(self.place, task),
            after=0 if need is None else need.attempt,
        )
        return claim, Attempts(self.place, task).claim(claim)

    def _matching(self, tasks: list[Task], where: dict[str, Claim]) -> Iterable[tuple[str, list[Task]]]:
        """Groups of tasks that go one by one with the elements of a batch: the last thing each needs is in it.

        A group that does not cover the batch waits: nothing but equal indices ties elements of two arrays together.
        """
        by_batch: dict[str, dict[int, list[Task]]] = {}
        for task in tasks:
            claim = self._newest(task.needs[-1], where)
            if claim is not None:
                by_batch.setdefault(claim.batch, {}).setdefault(claim.index, []).append(task)
        for name, by_index in by_batch.items():
            stored = Batches(self.place).read(name)
            count = 0 if stored is None else len(stored.tasks)
            while set(by_index) == set(range(count)) and all(by_index.values()):
                yield name, [by_index[index].pop(0) for index in range(count)]

    def _newest(self, name: str, where: dict[str, Claim]) -> Claim | None:
        """The newest claim of the task of that name, `where` being those of just now."""
        task = self._by_name.get(name)
        return where.get(name) or (None if task is None else Attempts(self.place, task).last())

    def _keep_going(self, standings: dict[str, Standing]) -> bool:
        """Jobs that are alive are to have one that goes on after them: theirs may be cancelled or lost, or its command
        may have died before it had submitted one. Whether there is one now."""
        if self.is_closed():
            return True
        living = [s for s in standings.values() if s.state in ("queued", "running") and not s.cancelled]
        claims = [Attempts(self.place, s.task).of(s.attempt) for s in living]
        batches = sorted({claim.batch for claim in claims if claim is not None})
        if self._refused or not batches or self.executor.after("tables", batches, matching=False) is None:
            return False  # of the last, none has a job id yet
        return self._submit_closing(batches)

    def _submit_closing(self, batches: list[str]) -> bool:
        """One more job when these have ended: it submits what was lost, or makes the tables. Whether it was taken."""
        after = self.executor.after("tables", batches, matching=False)
        batch = Batch(
            name=batch_name("tables"),
            tasks=["tables"],
            request=self.truth.study.asked(),
            data_dir=None if self.truth.data_dir is None else str(self.truth.data_dir.resolve()),
            code=self.code,
            executor=self.executor.name,
            **self._submitter(),
            at=now(),
        )
        Batches(self.place).write(batch)
        try:
            self.executor.submit(batch, [1], "tables", after)
        except HarnessError as error:  # the work itself is in the queue
            self._refused = not isinstance(error, Unreachable)  # which passes
            Batches(self.place).write_error(batch.name, said(error))
            self.say(f"no job that goes on when these have ended: {said(error)}; `harness resume` does it then")
            return False
        return True

    def is_closed(self) -> bool:
        """Whether a job that goes on when the others have ended, or makes the tables, is in the cluster's hands, or is
        just being submitted by another command.

        Not one that was submitted for what another command asked for: it does not know of this one's runs. And to a
        closing job no other one that runs is: each would leave what is left to the other.
        """
        batches = Batches(self.place)
        closing = [name for name in batches.closing() if name != self.inside]
        seen = self.executor.look(closing)
        for name in closing:
            job = seen(Claim(attempt=1, batch=name, index=0))
            if job is not None:
                there = job.alive and not (self.inside and job.running)
            else:
                there = batches.submitted(name) is None and batches.error(name) is None and self._coming(name)
            if there and self._for_this(name):
                return True
        return False

    def _for_this(self, batch: str) -> bool:
        """Whether the batch was made for what is asked for here."""
        made, nameless = Batches(self.place).read(batch), {"name": ""}  # `resume` takes the name from the folder
        return made is not None and made.request | nameless == self.truth.study.asked() | nameless

    def _coming(self, batch: str) -> bool:
        return submitter_lives(Batches(self.place).read(batch)) is True

    # -- the end ------------------------------------------------------------------------------------------------------

    def failures(self, standings: dict[str, Standing]) -> list[str]:
        """A line for each task that failed; runs that never ended get records that say so."""
        for standing in standings.values():
            if standing.task.stage == "pretrain" and standing.state == "failed":
                self._record_failure(standing)
        self._record_cancelled(standings)
        for job in self.truth.todo:
            record = None if job.source is None else self.truth.record(job.key)
            if job.source is not None and (record is None or record.state not in ENDED):
                source = self.truth.record(job.source.key)
                if source is not None:
                    adopt(job, self.place, source)
        bad: dict[tuple[str, ...], list[Standing]] = {}  # the evaluations of one run in one line
        for standing in standings.values():
            if standing.state in ("failed", "cancelled"):
                bad.setdefault((standing.task.stage, standing.task.key, standing.state), []).append(standing)
        return [self._line(first, len(more)) for first, *more in bad.values()] + self._diverged()

    def _diverged(self) -> list[str]:
        records = [self.truth.record(job.key) for job in self.truth.todo]
        return [f"{r.cell.label}: diverged: {r.message}" for r in records if r is not None and r.state == "diverged"]

    def _line(self, standing: Standing, more: int) -> str:
        task = standing.task
        what = task.label if task.stage == "references" else f"{task.stage} {task.label}"
        many = f" and {more} more of its snapshots" if more else ""
        said = f"{what}{many}: {standing.why or standing.state}"
        if standing.state == "failed":
            said += f"\nsee python -m harness logs {self.place.path} {standing.task.key}"
        return _indented(said)

    def _record_failure(self, standing: Standing) -> None:
        job, record = self.truth.job(standing.task.key), self.truth.record(standing.task.key)
        if record is not None and record.state in ENDED:  # a job that was thought dead came to its end
            return
        folder = self.place.run(job.key)
        first = (standing.why.splitlines() or ["failed"])[0]
        claim = Attempts(self.place, standing.task).last()
        tail = "" if claim is None else log_tail(self.place, claim)
        write_atomic(folder.error, f"{standing.why}\n" if tail in standing.why else f"{standing.why}\n\n{tail}\n")
        if record is None or record.state != "failed":
            update = {"state": "failed", "message": first, "attempts": standing.attempt}
            store.write(folder.record, (record or opening(job, None)).model_copy(update=update))

    def _record_cancelled(self, standings: dict[str, Standing]) -> None:
        """A job that is ended at once cannot say so itself; the run can go on from its last checkpoint."""
        for standing in standings.values():
            if standing.task.stage != "pretrain" or standing.state != "cancelled":
                continue
            record = self.truth.record(standing.task.key)
            if record is not None and record.state == "running":
                update = {"state": "interrupted"}
                store.write(self.place.run(record.key).record, record.model_copy(update=update))


def _indented(text: str) -> str:
    return "\n            ".join(text.splitlines())


def _groups(tasks: Iterable[Task]) -> Iterable[list[Task]]:
    """Tasks that make one array, pre-training first."""
    ordered = sorted(tasks, key=lambda task: (ORDER.index(task.stage), *map(str, task.level)))
    return [list(group) for _, group in groupby(ordered, key=lambda task: task.level)]


def over(standings: dict[str, Standing]) -> bool:
    return all(s.state in OVER for s in standings.values())


def settle(driver: Driver, every_s: float = 3.0) -> dict[str, Standing]:
    """One round, and more while it is not certain of some job whether it is lost: nobody comes to look later."""
    standings, waited_s = driver.round(), 0.0
    while any(s.why == UNSEEN for s in standings.values()) and waited_s < 2 * SUBMITTING_S:
        driver.executor.wait(every_s)
        waited_s += every_s
        standings = driver.round()
    return standings


def watch(driver: Driver, show: Callable[[dict[str, Standing]], None], every_s: float = 1.0) -> dict[str, Standing]:
    """Rounds until every task is over. Raises KeyboardInterrupt when the user leaves; the jobs go on."""
    while True:
        begun = time.monotonic()
        standings = driver.round()
        show(standings)
        if over(standings):
            return standings
        # A large study on a slow disk: half the time at most.
        driver.executor.wait(max(every_s, time.monotonic() - begun))
