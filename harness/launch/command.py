"""The commands around a launched study: run, resume, cancel, logs, and the job that closes it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from harness import machine, store
from harness.answers import Answers
from harness.config import plain
from harness.display import choose
from harness.errors import HarnessError, unknown
from harness.files import write_atomic
from harness.launch import local, options, preflight, queue
from harness.launch.drive import Driver, Submits, over, settle, watch
from harness.launch.folders import Attempts, Batch, Batches, Claim, End, now
from harness.launch.freeze import freeze
from harness.launch.inline import Inline, Shown
from harness.launch.living import refuse_living
from harness.launch.options import Launch
from harness.launch.queue import Queue, Unreachable
from harness.launch.show import Watched, left, told_state
from harness.launch.slurm import Slurm
from harness.launch.standing import OVER, Standing
from harness.launch.tasks import Task, graph
from harness.launch.truth import Truth, logs
from harness.lock import only_writer, refuse_trainer
from harness.plan.remember import remember
from harness.plugins import find
from harness.records import StudyRecord
from harness.resolve import Job, jobs, readable
from harness.signals import Stopper
from harness.study import Study, build

NO_BATCH = "cancelled"  # of an attempt that nobody is to make
LAUNCH = "launch.json"  # beside study.json: where and how its jobs run, for commands that come later


@dataclass(frozen=True)
class Asked:
    """What a command asks for beside the study."""

    launch: Launch
    data_dir: Path | None = None
    detach: bool = False


def launch_study(study: Study, out: Path, asked: Asked, stopper: Stopper) -> tuple[store.Study, list[str]] | None:
    """Bring the study to its end. The study's folder and a line for each failure; None where it was left to its jobs.

    Raises KeyboardInterrupt when asked to stop where nothing goes on without this command, after saving; HarnessError
    before anything is begun when the cluster cannot run it, or where work of it is alive in another way.
    """
    place = store.Study(out / study.folder_name())
    if asked.launch.cluster == "slurm":
        refuse_trainer(place.path)
        executor, gpus = _executor(place, asked.launch, stopper, study)
        answers = Answers()
        return _launched(study, place, asked, jobs(study, asked.data_dir, gpus), executor, answers)
    if asked.detach:
        raise HarnessError(
            f"--detach with --cluster {asked.launch.cluster}: work on this machine ends with its command",
            "--detach with --cluster slurm",
            "leave out --detach",
        )
    executor, gpus = _executor(place, asked.launch, stopper, study)
    answers = Answers()  # before the methods are imported
    todo = jobs(study, asked.data_dir, gpus)
    refuse_living(place, study, todo)  # before the study is held, too: to hold it would disturb the jobs' command
    with only_writer(place.path):
        return _launched(study, place, asked, todo, executor, answers)


def _launched(
    study: Study, place: store.Study, asked: Asked, todo: list[Job], executor: Submits, answers: Answers
) -> tuple[store.Study, list[str]] | None:
    for job in todo:  # before any work: the code that runs is that of now
        machine.code(job.method_class)
    remember(study, todo, asked.data_dir, answers)
    if asked.launch.cluster != "slurm":
        refuse_living(place, study, todo)
    before = read_launch(place)
    _write_asked(study, place, asked, todo)
    driver = _driver(study, place, asked.data_dir, todo, executor, asked.launch)
    driver.look.forgive()
    if before is not None and executor.chains and before.launch != asked.launch:
        _say_unchanged(driver)
    return _brought(driver, asked.detach)


def _say_unchanged(driver: Driver) -> None:
    """What other options than those of before do not reach."""
    queued = sum(standing.state == "queued" for standing in driver.look().values())
    if queued:
        next_step = f"to change it: python -m harness cancel {driver.place.path}, and this command again"
        print(f"{queued} task(s) in the queue keep what they were submitted with; {next_step}")


def _executor(
    place: store.Study, launch: Launch, stopper: Stopper, study: Study | None = None
) -> tuple[Submits, int | None]:
    """The executor, and how many GPUs a job has; None where that is what this process finds."""
    if launch.cluster == "inline":
        return Inline(place, holds=True, display=choose(), stopper=stopper), None
    if launch.cluster == "local":
        devices = local.devices(launch.gpus)
        return local.Local(place, holds=True, devices=devices), sum(1 for device in devices if device)
    queue.require()
    asking = Queue()
    fits = preflight.check(launch, asking.partitions(), study)
    return Slurm(place, launch, fits.gpus, fits.limit_s, asking), fits.gpus


def _driver(
    study: Study, place: store.Study, data_dir: Path | None, todo: list[Job], executor: Submits, launch: Launch
) -> Driver:
    truth = Truth(study, place, todo, data_dir)
    if isinstance(executor, Inline):  # the code that is loaded already
        return Driver(truth, replace(executor, truth=truth), code="", tries=_tries(launch), say=lambda line: None)
    runs = [*todo, *(job.source for job in todo if job.source)]
    modules = [find("method", job.cell.method).module for job in runs] + [find("eval", n).module for n in study.evals]
    code = freeze(place.path / "code", modules)
    return Driver(truth, executor, str(code.resolve()), launch.tries, launch.rendezvous)


def _tries(launch: Launch) -> int:
    return 1 if launch.cluster == "inline" else launch.tries  # what failed in this process would fail in it again


def _write_asked(study: Study, place: store.Study, asked: Asked, todo: list[Job]) -> None:
    record = StudyRecord(request=study.asked(), keys=kept(place, todo) + [job.key for job in todo])
    write_atomic(place.path / "study.json", record.model_dump_json(indent=1) + "\n")
    data_dir = None if asked.data_dir is None else str(asked.data_dir.resolve())
    content = {"launch": plain(asked.launch), "data_dir": data_dir}
    write_atomic(place.path / LAUNCH, json.dumps(content, indent=1) + "\n")


def kept(place: store.Study, todo: list[Job]) -> list[str]:
    """Runs of earlier commands in this folder that stay in its tables: those whose cells are not asked for anew.

    One that only has jobs yet counts as well; its cell is the readable part of its key.
    """
    if not (place.path / "study.json").exists():
        return []
    before, cells = place.asked().keys, [job.cell for job in todo]
    begun, named = {run.key: run.cell for run in place.runs()}, {readable(job.key) for job in todo}
    waiting = [
        key for key in before if key not in begun and readable(key) not in named and place.run(key).jobs.is_dir()
    ]
    return sorted([key for key in before if key in begun and begun[key] not in cells] + waiting)


def _brought(driver: Driver, detach: bool) -> tuple[store.Study, list[str]] | None:
    """The study at its end, or None where the user left it to its jobs."""
    shown = Shown(driver.executor) if isinstance(driver.executor, Inline) else Watched(driver)
    try:
        if detach:
            settle(driver)
            shown(driver.look())
            return None
        with shown:
            standings = watch(driver, shown)
    except KeyboardInterrupt:
        if not driver.executor.chains:
            raise
        print(left(driver))
        if not driver.whole:
            raise
        return None
    finally:
        driver.executor.close()
    return driver.place, driver.failures(standings)


# -- later, with nothing but the folder -------------------------------------------------------------------------------


def read_launch(place: store.Study) -> Asked | None:
    """How the study was launched; None where nothing says so."""
    try:
        content = json.loads((place.path / LAUNCH).read_text())
        launch, data_dir = content["launch"], content["data_dir"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise HarnessError(
            f"{place.path / LAUNCH} does not fit: {error}",
            "the file as the harness wrote it",
            "repeat the `run` command",
        ) from None
    return Asked(options.build(launch), None if data_dir is None else Path(data_dir))


def resume(place: store.Study, detach: bool, stopper: Stopper) -> tuple[store.Study, list[str]] | None:
    """`run` again, as it was asked for the last time. A study that is complete lacks its tables alone: no cluster is
    asked for them."""
    asked = _launched_by(place)
    driver = looking(place)
    left = [standing for standing in driver.look().values() if standing.state != "done"]
    if not left:
        return place, []
    path = place.path.resolve()  # `.` has no name
    wanted = [driver.truth.earlier[s.task.key] for s in left if s.task.key in driver.truth.earlier]
    for number, study in enumerate(wanted):  # the last command's is the last again, and the one that is waited for
        if study not in wanted[:number]:
            leave = asked.launch.cluster == "slurm"
            launch_study(replace(study, name=path.name), path.parent, replace(asked, detach=leave), stopper)
    study = driver.truth.study
    return launch_study(replace(study, name=path.name), path.parent, replace(asked, detach=detach), stopper)


def _launched_by(place: store.Study) -> Asked:
    place.asked()
    asked = read_launch(place)
    if asked is None:
        raise HarnessError(
            f"nothing in {place.path} says how it was run",
            "a study that `run` has begun",
            "repeat the `run` command that made it; status shows how far it is",
        )
    return asked


def looking(place: store.Study) -> Driver:
    """What looks where the study's tasks stand, again and again; it submits nothing."""
    asked = _launched_by(place)
    executor, gpus = _looker(place, asked.launch)
    return Driver(Truth.of_folder(place, asked.data_dir, gpus), executor, "", _tries(asked.launch))


def _looker(place: store.Study, launch: Launch) -> tuple[Submits, int | None]:
    """An executor that is only asked: no partition is looked at."""
    if launch.cluster == "inline":
        return Inline(place), None
    if launch.cluster == "local":
        return local.Local(place), 1
    return Slurm(place, launch, 1, None), 1


def cancel(place: store.Study, cells: Collection[str]) -> list[str]:
    """End the jobs of the study, or of the cells named, and keep them from being submitted again; a line for each.

    Raises Unreachable when the cluster cannot be asked; what was in the folder is written down all the same.
    """
    if _launched_by(place).launch.cluster == "inline":
        raise HarnessError(
            f"the study {place.path} runs in the process of its own command",
            "a study of --cluster slurm or local",
            "Ctrl-C in its terminal saves and ends it; `harness resume` goes on from there",
        )
    driver = looking(place)
    meant = _meant(driver.tasks, cells)
    try:
        standings = driver.look()
    except Unreachable as error:
        many = sum(_written_off(place, task) for task in driver.tasks if task.name in meant)
        raise Unreachable(
            error.found,
            f"{many} tasks are written down as cancelled: they are not submitted again, but jobs that run go on",
            f"python -m harness cancel {place.path} again when sinfo answers, which ends those",
        ) from error
    left = [s for s in standings.values() if s.task.name in meant and s.state not in OVER]
    # Written first: a driver that looks meanwhile must not submit it again.
    claims = [_cancelled(place, standing) for standing in left]
    closing = [] if cells else _closing(driver)  # nothing is left for it to go on with
    driver.executor.cancel([*(claim for claim in claims if claim.batch != NO_BATCH), *closing])
    return [*(f"cancelled  {s.task.name}" for s in left), *("cancelled  tables" for _ in closing)]


def _closing(driver: Driver) -> list[Claim]:
    """The jobs in the queue that go on when all others have ended."""
    claims = [Claim(attempt=1, batch=name, index=0) for name in Batches(driver.place).closing()]
    seen = driver.executor.look({claim.batch for claim in claims})
    return [claim for claim in claims if (job := seen(claim)) is not None and job.alive]


def _written_off(place: store.Study, task: Task) -> bool:
    """Cancel the newest attempt at the task, or the next where that one is over, without a look at its job."""
    attempts = Attempts(place, task)
    claim = attempts.last()
    end = None if claim is None else attempts.end(claim.attempt)
    if end is not None and end.state == "done":
        return False
    over = claim is None or (end is not None and end.state == "failed")  # what it failed of is kept
    _cancelled(place, Standing(task, "missing" if over else "queued", attempt=claim.attempt if claim else 0))
    return True


def _cancelled(place: store.Study, standing: Standing) -> Claim:
    """The newest attempt at the task, cancelled. Of a task that is in no queue the next attempt is taken for that."""
    attempts = Attempts(place, standing.task)
    claim = Claim(attempt=standing.attempt + 1, batch=NO_BATCH, index=0)
    if standing.state not in ("missing", "waiting") or not attempts.claim(claim):
        claim = attempts.last()
    attempts.ended(claim.attempt, End(state="stopped", kind="cancelled", message="cancelled", at=now()))
    return claim


def _meant(tasks: list[Task], cells: Collection[str]) -> set[str]:
    """Names of the tasks of the cells: keys, or the start of one, or a method's name."""
    if not cells:
        return {task.name for task in tasks}
    for cell in cells:
        if not any(task.key.startswith(cell) for task in tasks):
            raise unknown("cell", cell, sorted({task.key for task in tasks}), "status shows them")
    return {task.name for task in tasks for cell in cells if task.key.startswith(cell)}


def log_files(place: store.Study, cell: str) -> list[Path]:
    """Every log of the newest attempt that has one, of each task of the cell, in the order of the work; `tables`: the
    closing job's."""
    asked = _launched_by(place)
    if cell == "tables":
        newest = Batches(place).closing()[:1]
        return [path for name in newest for path in logs(place, Claim(attempt=1, batch=name, index=0))]
    truth = Truth.of_folder(place, asked.data_dir, 1)
    tasks = graph(truth.study, truth.todo)
    meant = _meant(tasks, [cell])
    found: list[Path] = []
    for task in tasks:
        if task.name in meant:  # one that was cancelled before it was submitted has no log: the one before it has
            every = (logs(place, claim) for claim in reversed(Attempts(place, task).all()))
            found += next(filter(None, every), [])
    return found


# -- inside the closing job -------------------------------------------------------------------------------------------


def close(place: store.Study, batch: Batch) -> None:
    """What the last job of a round does: submit what was lost, or, with nothing left to do, make the tables."""
    from harness.report import tables

    refuse_trainer(place.path)
    launch = _launched_by(place).launch
    study = build(batch.request)
    data_dir = None if batch.data_dir is None else Path(batch.data_dir)
    executor, gpus = _looker(place, launch)
    truth = Truth(study, place, jobs(study, data_dir, gpus), data_dir)
    driver = Driver(truth, executor, batch.code, launch.tries, launch.rendezvous, inside=batch.name)
    standings = driver.look()
    if not over(standings) and launch.cluster != batch.executor:
        print(f"the study goes on in another way now: --cluster {launch.cluster}")
        return
    if not over(standings):  # what goes on needs a partition that takes it; tables do not
        driver = replace(driver, executor=_executor(place, launch, Stopper(), study)[0])
        standings = settle(driver)
    print(told_state(standings), flush=True)
    if over(standings):
        for line in driver.failures(standings):
            print(f"failed    {line}")
        for path in tables.write_all(place):
            print(f"tables    {path}")
