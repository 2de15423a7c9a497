"""A study is run in one way at a time: work of it that is alive in another way is found, and refused."""

from __future__ import annotations

from collections.abc import Collection

from harness import store
from harness.errors import HarnessError
from harness.launch import queue
from harness.launch.folders import Attempts, Batches, Claim
from harness.launch.options import Launch
from harness.launch.slurm import Slurm
from harness.launch.standing import submitter_lives
from harness.launch.tasks import Task, graph, parse
from harness.resolve import Job
from harness.study import Study


def refuse_living(place: store.Study, study: Study, todo: Collection[Job]) -> None:
    """Raise HarnessError where SLURM has living jobs of the study, or where nobody can say that it has none.

    For work on this machine. Two processes that train one run would each write over what the other wrote; and of other
    runs that an earlier command asked for, the last job would leave the rest to a command that knows nothing of them.
    """
    if not (place.path / "jobs").is_dir():
        return
    tasks = {task.name: task for task in [*_submitted(place), *graph(study, todo)]}
    open_ones = [(task, claim) for task in tasks.values() if (claim := _in_slurm(place, task)) is not None]
    if not open_ones:
        return
    if not queue.here():
        unended = [task for task, claim in open_ones if Attempts(place, task).end(claim.attempt) is None]
        if unended:
            raise _refusal(place, unended, "were submitted to SLURM and have not ended, and it cannot be asked here")
        return
    seen = Slurm(place, Launch(), 0, None).look({claim.batch for _, claim in open_ones})
    jobs = [(task, claim, seen(claim)) for task, claim in open_ones]
    alive = [task for task, _, job in jobs if job is not None and job.alive]
    if alive:
        raise _refusal(place, alive, "have jobs in the queue")
    coming = [task for task, claim, job in jobs if job is None and _is_being_submitted(place, task, claim)]
    if coming:
        raise _refusal(place, coming, "are being submitted by another command")


def _submitted(place: store.Study) -> list[Task]:
    """Every task that was ever submitted to SLURM, whatever command asked for it."""
    batches = [Batches(place).read(name) for name in Batches(place).all()]
    names = {name for batch in batches if batch is not None and batch.executor == Slurm.name for name in batch.tasks}
    return [parse(name) for name in sorted(names - {"tables"})]


def _in_slurm(place: store.Study, task: Task) -> Claim | None:
    """The task's newest claim, where it went to SLURM and did not come to its end there."""
    claim = Attempts(place, task).last()
    batch = None if claim is None else Batches(place).read(claim.batch)
    if batch is None or batch.executor != Slurm.name:
        return None
    end = Attempts(place, task).end(claim.attempt)
    return None if end is not None and end.state == "done" else claim


def _is_being_submitted(place: store.Study, task: Task, claim: Claim) -> bool:
    """Whether the claim may get a job yet. A command that died before it had submitted gives it none."""
    if Attempts(place, task).end(claim.attempt) is not None or Batches(place).submitted(claim.batch) is not None:
        return False
    return submitter_lives(Batches(place).read(claim.batch)) is not False


def _refusal(place: store.Study, tasks: list[Task], what: str) -> HarnessError:
    first = tasks[0].label or tasks[0].key
    return HarnessError(
        f"{len(tasks)} tasks of the study {place.path} {what}: {tasks[0].stage} {first}{' ...' if tasks[1:] else ''}",
        "a study that is run in one way at a time",
        f"`harness resume {place.path}` goes on with its jobs; `harness cancel {place.path}` ends them first",
    )
