"""Where each task stands: from the records, the claims, and what the queue says; the folder's word goes first.

A job that the queue knows is alive whatever became of its earlier runs. One that it does not know, twice with some
seconds between, and that left no word of its own, is lost. What ended without being done is tried again: at no cost
where the cluster took it (a node, a preemption), and otherwise, by the time limit too, up to `tries` times of the same
kind in a row that got no further.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from harness import store
from harness.launch.folders import Attempts, Batch, Batches, Claim, End, now
from harness.launch.tasks import Task
from harness.launch.truth import log_tail, progress
from harness.processes import lives

State = Literal["done", "running", "queued", "missing", "waiting", "failed", "skipped", "cancelled"]
OVER: tuple[State, ...] = ("done", "failed", "skipped", "cancelled")
TWICE_S = 6.0  # between two looks that miss a job, before it counts as lost
SUBMITTING_S = 60.0  # that a batch may stay without a job id while nobody can be asked whether its submitter lives
OUTAGE_S = 900.0  # and while its submitter lives: sbatch is tried three times, with two minutes' patience and more each
MOST_TRIES = 200  # of one task, whatever ended them
UNSEEN = "submitted, and not seen yet"
FREE = ("node", "preempted", "signal", "void", "dependency", "cancelled")
WITH_ITS_NEED = "SLURM ended it with the job that it was to come after"
HOPELESS = ("memory", "no progress")  # the same again would end in the same way: one is enough


@dataclass(frozen=True)
class Seen:
    """A job in the eyes of its executor."""

    alive: bool
    running: bool = False
    word: str = ""  # its state and reason, as the executor says it
    kind: str = ""  # what ended it, for one that is not alive
    where: str = ""


class Executor(Protocol):
    """Where jobs run."""

    name: str

    def look(self, batches: Iterable[str]) -> Callable[[Claim], Seen | None]:
        """What is known of the job of a claim; None where it is unknown. Raises HarnessError when nobody answers."""
        ...


@dataclass(frozen=True)
class Standing:
    task: Task
    state: State
    why: str = ""
    attempt: int = 0
    where: str = ""
    cancelled: bool = False  # alive, and to end


@dataclass
class Look:
    """Looks at a study again and again, and remembers what it saw before."""

    place: store.Study
    tasks: list[Task]
    complete: Callable[[Task], bool]  # whether the store has all that the task is to make
    executor: Executor
    tries: int = 3
    clock: Callable[[], float] = time.monotonic
    _done: set[str] = field(default_factory=set)
    _absent: dict[tuple[str, int], float] = field(default_factory=dict)
    _checked: set[str] = field(default_factory=set)
    _forgiven: dict[str, int] = field(init=False)  # attempts up to this one do not count
    _elsewhere: dict[str, bool] = field(default_factory=dict)  # batches: whether another executor had them

    def __call__(self) -> dict[str, Standing]:
        """Every task's standing, by name."""
        self._forgiven = Batches(self.place).forgiven()  # a command that came later may have forgiven more
        claims = {task.name: self._last(task) for task in self.tasks if not self._is_done(task)}
        own = [claim for claim in claims.values() if claim is not None and not self._of_another(claim)]
        seen = self.executor.look({claim.batch for claim in own})
        found: dict[str, Standing] = {}
        for task in self.tasks:
            found[task.name] = self._standing(task, claims.get(task.name), seen, found)
        return found

    def forgive(self) -> None:
        """What failed or was cancelled before this command is tried anew: the user asks for it again.

        Not what is alive: it may still fail, or be cancelled.
        """
        over = [s for s in self().values() if s.attempt and (s.cancelled or s.state not in ("queued", "running"))]
        new = {standing.task.name: standing.attempt for standing in over}
        self._forgiven |= new
        Batches(self.place).forgive(new)  # jobs that look later, and commands, are to know it too

    def _of_another(self, claim: Claim) -> bool:
        """Whether another executor was given the claim. Its work is over: beside it none begins (`living`)."""
        if claim.batch not in self._elsewhere:
            batch = Batches(self.place).read(claim.batch)
            self._elsewhere[claim.batch] = batch is not None and batch.executor != self.executor.name
        return self._elsewhere[claim.batch]

    def _last(self, task: Task) -> Claim | None:
        return Attempts(self.place, task).last()

    def _is_done(self, task: Task) -> bool:
        """Asks the store once per attempt that says it is done; the store's word is what counts."""
        if task.name in self._done:
            return True
        attempts = Attempts(self.place, task)
        claim = attempts.last()
        number = 0 if claim is None else claim.attempt
        end = attempts.end(number)
        if end is None and number > 1:  # at work; but the attempt before, taken for lost, may have come to its end
            number -= 1
            end = attempts.end(number)
            if end is not None and end.state != "done":
                return False
        if claim is not None and end is None:
            return False  # at work
        key = f"{task.name} {number} {end is not None and end.state}"
        if key in self._checked:
            return False
        self._checked.add(key)
        if self.complete(task):
            self._done.add(task.name)
            return True
        return False

    def _standing(
        self, task: Task, claim: Claim | None, seen: Callable[[Claim], Seen | None], before: dict[str, Standing]
    ) -> Standing:
        if task.name in self._done:
            return Standing(task, "done")
        needs = [before[name] for name in task.needs if name in before]
        bad = [need for need in needs if need.state in ("failed", "skipped", "cancelled") and _vital(need.task)]
        if claim is None:
            return self._unclaimed(task, needs, bad)
        attempts = Attempts(self.place, task)
        end = attempts.end(claim.attempt)
        unsure = end is None or end.state == "stopped"
        job = self._job(claim, seen) if unsure else None  # of what has ended nobody is asked
        if job is not None and job.alive:
            self._absent.pop((task.name, claim.attempt), None)
            state = "running" if job.running else "queued"
            cancelled = end is not None and end.kind == "cancelled"
            return Standing(task, state, job.word, claim.attempt, job.where, cancelled)
        if end is None or (end.state == "stopped" and job is not None and job.kind == "cancelled"):
            end = self._found_dead(task, claim, job, before)
        if end is None:
            return Standing(task, "queued", UNSEEN, claim.attempt)
        if end.state == "done" and self._is_done(task):  # since this look began
            return Standing(task, "done")
        return self._after(task, claim, end, needs, bad)

    def _unclaimed(self, task: Task, needs: list[Standing], bad: list[Standing]) -> Standing:
        if bad:
            return Standing(task, "skipped", f"{bad[0].task.name}: {bad[0].state}")
        return Standing(task, "missing" if _ready(needs) else "waiting")

    def _job(self, claim: Claim, seen: Callable[[Claim], Seen | None]) -> Seen | None:
        if not self._of_another(claim):
            return seen(claim)
        return Seen(False, word="it was begun in another way (--cluster), which is over", kind="signal")

    def _found_dead(self, task: Task, claim: Claim, job: Seen | None, before: dict[str, Standing]) -> End | None:
        """What ended an attempt that left no word; None while that is not certain. It is written down."""
        if job is not None:
            kind, message = job.kind, job.word
            need = before.get(task.needs[-1]) if kind == "cancelled" and claim.after else None
            if need is not None and need.why == UNSEEN:
                return None
            if need is not None and not self._fulfilled(need, claim):
                kind, message = "dependency", WITH_ITS_NEED
        else:
            first = self._absent.setdefault((task.name, claim.attempt), self.clock())
            kind, message, patience = self._missed(claim)
            if self.clock() - first < patience:
                return None
        tail = log_tail(self.place, claim)
        end = End(state="failed", kind=kind, message=f"{message}\n{tail}".strip(), at=now())
        return Attempts(self.place, task).found_dead(claim.attempt, end)

    def _fulfilled(self, need: Standing, claim: Claim) -> bool:
        """Whether the attempt at `need` that the claim was to come after is alive or done.

        Then a person cancelled what came after it; else SLURM did, as its turn could come no more.
        """
        if need.attempt == claim.after and need.state in ("queued", "running"):
            return True
        end = Attempts(self.place, need.task).end(claim.after)
        return need.state == "done" if end is None else end.state == "done"

    def _missed(self, claim: Claim) -> tuple[str, str, float]:
        """What a job that nobody knows is taken for, and after how many seconds."""
        batches = Batches(self.place)
        if batches.submitted(claim.batch) is not None:
            return "lost", "the queue does not know the job any more, and it left no word", TWICE_S
        alive = submitter_lives(batches.read(claim.batch))
        return "void", "it was never submitted", {None: SUBMITTING_S, True: OUTAGE_S, False: TWICE_S}[alive]

    def _after(self, task: Task, claim: Claim, end: End, needs: list[Standing], bad: list[Standing]) -> Standing:
        """The standing of a task whose last attempt is over and which is not done."""
        since = self._forgiven.get(task.name, 0)
        if end.kind == "cancelled" and claim.attempt > since:
            return Standing(task, "cancelled", end.message, claim.attempt)
        tries = 1 if end.kind in HOPELESS else self.tries
        if self._failures(task, since) >= tries or claim.attempt >= since + MOST_TRIES:
            return Standing(task, "failed", end.message, claim.attempt)
        if bad:
            return Standing(task, "skipped", f"{bad[0].task.name}: {bad[0].state}", claim.attempt)
        return Standing(task, "missing" if _ready(needs) else "waiting", end.message, claim.attempt)

    def _failures(self, task: Task, since: int) -> int:
        """Attempts after `since`, from the last one back, that ended in the same way and got no further."""
        attempts = Attempts(self.place, task)
        reached, count, kind = progress(self.place, task), 0, None
        for claim in reversed(attempts.all()):
            end = attempts.end(claim.attempt)
            if claim.attempt <= since:
                break
            if end is None or end.kind in FREE:
                continue
            said = (end.kind, re.sub(r"(0x)?[0-9a-f]*\d[0-9a-f]*", "#", end.message) if end.kind == "error" else "")
            if (kind is not None and said != kind) or claim.reached < reached:
                break
            kind, reached, count = said, claim.reached, count + 1
        return count


def _vital(task: Task) -> bool:
    """Whether nothing can be made of what needs the task without it. An evaluation spares its readers work, no more."""
    return task.stage == "pretrain"


def _ready(needs: list[Standing]) -> bool:
    return all(need.state == "done" or (need.state in OVER and not _vital(need.task)) for need in needs)


def submitter_lives(batch: Batch | None) -> bool | None:
    """Whether the command that wrote the batch is alive; None where that cannot be seen from this computer."""
    return None if batch is None or batch.host != socket.gethostname() else lives(batch.pid, batch.born)
