"""What a job does: one task of a study, from wherever it stands, in the code that was frozen when it was submitted.

A job may be killed at any moment and started again, or run twice: the store says what is done, the lease says who may
write. On the signal before the time limit, or at a preemption, it saves itself and goes back into the queue.
"""

from __future__ import annotations

import time
import traceback
from contextlib import nullcontext
from pathlib import Path

from harness import store
from harness.display import Display, Plain
from harness.distributed import ALONE, Ranks, joined, ranks
from harness.errors import HarnessError, told
from harness.evaluate_run import evaluate_references, evaluate_run
from harness.launch.folders import Attempts, Batch, Batches, End, Guard, Superseded, now
from harness.launch.job import Work
from harness.launch.queue import Unreachable
from harness.launch.tasks import Task, parse
from harness.launch.truth import Truth, progress
from harness.pretrain_run import pretrain_run
from harness.records import ENDED, RunRecord
from harness.resolve import Job, jobs
from harness.shared import adopt
from harness.signals import Stopper
from harness.study import build
from harness.train.pretraining import Interrupted

AWAY_S = 60  # between the turns of a closing job that nobody answers
AGAIN = 75  # exit status of a job that saved itself and is to be run again (EX_TEMPFAIL)


class NotYet(Exception):
    """What the task needs is not there yet."""


def work(item: Work, stopper: Stopper) -> str:
    """Do one task; how it ended: "done", "failed" or "stopped". Every way out but a kill is written down."""
    place = store.Study(Path(item.study))
    with stopper.graceful():  # a signal before anything can be written down is asked for later
        batch = Batches(place).read(item.batch)
        if batch is None:
            raise HarnessError(f"no batch {item.batch} in {place.path}", "the study's folder, shared with this node")
        name = batch.tasks[item.index]
    if name == "tables":
        return _close(place, batch, stopper)
    attempts = Attempts(place, parse(name))
    with stopper.graceful():
        claim, before = attempts.of(item.attempt), attempts.end(item.attempt)
    if claim is None or (claim.batch, claim.index) != (item.batch, item.index):
        print(f"{name}: another command's job has this attempt", flush=True)
        return "done"
    if before is not None and before.kind == "cancelled":
        print(f"{name}: this attempt was cancelled", flush=True)
        return "done"
    try:
        # Several processes stop together, where training asks: one that left by itself would take the others with it.
        together = nullcontext() if ranks().world == 1 else stopper.graceful()
        with together, joined() as group:
            _do(batch, name, place, stopper, group, item.attempt)
        end = End(state="done", at=now())
    except Superseded:
        print(f"{name}: a later job has this task; this one stops and writes nothing", flush=True)
        return "done"
    except NotYet as error:
        end = End(state="stopped", kind="dependency", message=str(error), at=now())
    except (KeyboardInterrupt, Interrupted):
        end = End(state="stopped", kind="signal", message=f"stopped by {stopper.by}", at=now())
    except Exception as error:
        traceback.print_exc()
        end = End(state="failed", kind="error", message=told(error), at=now())
    if ranks().first:
        with stopper.graceful():  # what is done is to be written down as that
            attempts.ended(item.attempt, end)
    return end.state


def _close(place: store.Study, batch: Batch, stopper: Stopper) -> str:
    """The job that comes after all others. What it fails of is kept beside its batch, for `status`.

    An outage of the controller it sits out, up to its own time limit: nobody would come after it.
    """
    from harness.launch.command import close

    try:
        while True:
            try:
                _go_on(stopper)
                close(place, batch)
                return "done"
            except Unreachable as error:
                print(f"{told(error)}; again in {AWAY_S} s", flush=True)
            time.sleep(AWAY_S)
    except KeyboardInterrupt:  # a time limit or a preemption; nothing of it is lost by doing it again
        if not stopper.again:  # then it does not go back into the queue
            Batches(place).write_error(batch.name, f"stopped by {stopper.by}")
        return "stopped"
    except Exception as error:
        traceback.print_exc()
        Batches(place).write_error(batch.name, told(error))
        return "failed"


def fruitless(item: Work) -> bool:
    """Whether the time limit ended so many turns of the task without progress that one more would end like them.

    Then the attempt is written down as failed. Asked by a job that was told to save itself and has done so.
    """
    from harness.launch import submit
    from harness.launch.command import read_launch

    place = store.Study(Path(item.study))
    name = Batches(place).read(item.batch).tasks[item.index]
    asked = read_launch(place)
    if name == "tables" or asked is None or not ranks().first or not submit.by_time_limit(asked.launch.signal_s):
        return False
    attempts = Attempts(place, parse(name))
    turns = attempts.fruitless(item.attempt, progress(place, parse(name)))
    if turns < asked.launch.tries:
        return False
    message = f"the time limit ended {turns} turns one after another, and none got any further: a longer --time"
    attempts.ended(item.attempt, End(state="failed", kind="no progress", message=message, at=now()))
    return True


def _task(batch: Batch, name: str, truth: Truth) -> Task:
    try:
        return truth.task(name)
    except KeyError:
        raise HarnessError(
            f"the task {name!r} of the batch {batch.name} is not one of its study here",
            "the code, the settings and the data that were there at submission",
            "repeat the command that was submitted",
        ) from None


def _do(batch: Batch, name: str, place: store.Study, stopper: Stopper, group: Ranks, attempt: int) -> None:
    """The work itself, by all processes of the job; returns when the store has all of it, or raises."""
    study = build(batch.request)
    data_dir = None if batch.data_dir is None else Path(batch.data_dir)
    truth = Truth(study, place, jobs(study, data_dir), data_dir)
    perform(_task(batch, name, truth), truth, attempt, stopper, Plain(), group, batch.at)


def perform(
    task: Task,
    truth: Truth,
    attempt: int,
    stopper: Stopper,
    display: Display,
    group: Ranks = ALONE,
    submitted_at: str = "",
) -> None:
    """Bring the task to its end, from wherever it stands; `submitted_at` where it waited in a queue since then.

    Raises Superseded where a later attempt has begun, NotYet, Interrupted, KeyboardInterrupt, or what it failed of.
    """
    guard, complete = _begun(task, truth, group, attempt, submitted_at)
    if not complete:
        _made(task, truth, stopper, display, group, guard)
    guard()


def _begun(task: Task, truth: Truth, group: Ranks, attempt: int, submitted_at: str) -> tuple[Guard, bool]:
    """The lease of the job, and whether nothing is left to do. The first process finds out, for all: it alone writes,
    and none is to wait for another that has gone. Raises Superseded in all of them."""
    guard, said = Guard(), ""
    if group.first:
        try:
            guard = Attempts(truth.place, task).take(attempt, submitted_at, progress(truth.place, task))
            said = "complete" if truth.complete(task) else ""
        except Superseded:
            said = "superseded"
    said = group.told(said)
    if said == "superseded":
        raise Superseded
    return guard, said == "complete"


def _made(task: Task, truth: Truth, stopper: Stopper, display: Display, group: Ranks, guard: Guard) -> None:
    place = truth.place
    if task.stage != "pretrain":  # which asks by itself, for all its processes
        _go_on(stopper)
    if task.stage == "references":
        data = next(job.data for job in truth.todo if job.cell.dataset == task.key)
        evaluate_references(data, truth.study, place, display, truth.data_dir, guard=guard)
        return
    job, record = truth.job(task.key), truth.record(task.key)
    if task.stage == "pretrain":
        pretrain_run(job, place.run(job.key), record, display, stopper, guard, group, guard.waited_s)
        if group.first:
            place.run(job.key).error.unlink(missing_ok=True)  # of an earlier attempt
        return
    if job.source is not None:
        record = adopted(job, truth)
    if record is None or record.state not in ENDED:
        raise NotYet(f"the run {task.key} is not pre-trained")  # SLURM takes a dependency that it forgot for fulfilled
    if record.state == "finished":
        evaluate_run(job, truth.study, place, display, truth.data_dir, only=task.share, guard=guard)


def _go_on(stopper: Stopper) -> None:
    """Raises KeyboardInterrupt where a signal came while the process started."""
    if stopper.asked:
        raise KeyboardInterrupt


def adopted(job: Job, truth: Truth) -> RunRecord | None:
    """The record of a reader, made of its source's; None while there is none."""
    record, source = truth.record(job.key), truth.record(job.source.key)
    if source is None or (record is not None and record.state in ENDED):
        return record
    return adopt(job, truth.place, source)
