"""The driver: brings a study from where it stands to finished tables, one cell after another in this process.

Idempotent: it asks the store what is done and does the rest. Nothing finished is redone, nothing is counted twice.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import machine, store
from harness.answers import Answers
from harness.display import Display
from harness.errors import CannotWrite, HarnessError, said, told
from harness.evaluate_run import evaluate_references, evaluate_run
from harness.files import write_atomic
from harness.lock import only_writer
from harness.plan.remember import remember
from harness.plugins import eval_plugins
from harness.pretrain_run import pretrain_run
from harness.records import ENDED, RunRecord, StudyRecord
from harness.resolve import Job, jobs, readable
from harness.shared import adopt
from harness.signals import Stopper
from harness.study import Study, build, merge
from harness.train.pretraining import Interrupted


def run_study(
    study: Study, out: Path, display: Display, stopper: Stopper, data_dir: Path | None = None
) -> tuple[store.Study, list[str]]:
    """Every cell pre-trained and evaluated. Returns the study's folder and a line for each thing that failed.

    A cell that diverges or fails is recorded as what it is and the others go on.
    Raises KeyboardInterrupt when asked to stop, after saving; HarnessError where jobs of it are alive.
    """
    from harness.launch.living import refuse_living

    answers = Answers()
    todo = jobs(study, data_dir)
    place = store.Study(out / study.folder_name())
    refuse_living(place, study, todo)  # before the study is held, too: to hold it would disturb the jobs' command
    with only_writer(place.path):
        remember(study, todo, data_dir, answers)
        refuse_living(place, study, todo)
        asked = StudyRecord(request=study.asked(), keys=kept(place, todo) + [job.key for job in todo])
        write_atomic(place.path / "study.json", asked.model_dump_json(indent=1) + "\n")
        failed: dict[str, Exception] = {}
        work = _Work(study, place, display, data_dir)
        failures = _each(todo, work, lambda job: _pretrained(job, place, display, stopper, failed))
    return place, failures


@dataclass(frozen=True)
class _Work:
    """What is asked of a study, but for its jobs."""

    study: Study
    place: store.Study
    display: Display
    data_dir: Path | None = None
    force: bool = False  # evaluate also what has a record
    done: set[Path] = field(default_factory=set)  # eval records that this command has written


def evaluate_study(
    place: store.Study,
    evals: str | None,
    words: dict[str, Any],
    display: Display,
    data_dir: Path | None = None,
    only: Collection[str] = (),
    force: bool = False,
) -> list[str]:
    """The named evals (the study's own for None), with settings from `words`, on every finished run. Trains nothing.

    `only` are the keys of the runs meant, where not all of them are; with `force` what has a record is done again.
    Returns a line for each thing that failed. Raises HarnessError when the study's code or data changed so that its
    runs cannot be recognised, or when `words` set anything but evals.
    """
    asked = place.asked()
    foreign = [section for section in words if section not in eval_plugins()]
    if foreign:
        raise HarnessError(
            f"{foreign[0]!r} is no eval, and nothing is trained here", "EVAL.KEY=VALUE", "for example: knn.k=5"
        )
    if not asked.request.get("methods"):
        raise HarnessError(
            f"the study {place.path} holds released weights only, and does not keep their files",
            "a study with runs",
            f"python -m harness eval --checkpoint PATH --out {place.path.parent} --name {place.path.name}",
        )
    study = build(merge(asked.request, words | ({"evals": evals} if evals else {})))
    with only_writer(place.path, "eval"):
        todo = [job for job in jobs(study, data_dir) if place.run(job.key).record.exists()]
        unknown_keys = sorted(set(only) - {job.key for job in todo})
        if not todo or unknown_keys:
            raise HarnessError(
                f"{', '.join(unknown_keys) or f'none of the {len(asked.keys)} runs of the study'} is not recognised: "
                "its settings, data or interface changed",
                "the code and data that made the study",
                f"python -m harness status {place.path}",
            )
        released = {run.key for run in place.runs() if run.released}
        strange = [] if only else sorted(set(asked.keys) - released - {job.key for job in todo})
        failures = [f"{key}: not evaluated, its settings, data or interface changed since" for key in strange]
        work = _Work(study, place, display, data_dir, force)
        meant = [job for job in todo if not only or job.key in only]
        return failures + _each(meant, work, lambda job: store.read_as(RunRecord, place.run(job.key).record))


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


def _each(todo: list[Job], work: _Work, pretrained: Callable[[Job], RunRecord]) -> list[str]:
    """Bring every job, and then the reference rows, to their end; a line for each that failed."""
    failures: list[str] = []
    for job in todo:  # before any work: the code that runs is that of now
        machine.code(job.method_class)
    study, place, display = work.study, work.place, work.display
    display.start([job.label for job in todo])
    try:
        for job in todo:
            with _failing(job.label, place.run(job.key), display, failures):
                record = pretrained(job)
                if record.state == "finished":
                    evaluate_run(job, study, place, display, work.data_dir, work.force, work.done)
                else:
                    failures.append(f"{job.label}: {_state_line(record)}")
                display.done(job.label, _state_line(record))
        for data in {job.cell.dataset: job.data for job in todo}.values():
            with _failing(f"references of {data.spec.name}", place.references(data.spec.name), display, failures):
                evaluate_references(data, study, place, display, work.data_dir, work.force)
    finally:
        display.stop()
    return failures


def _pretrained(
    job: Job, place: store.Study, display: Display, stopper: Stopper, failed: dict[str, Exception]
) -> RunRecord:
    """The job's record, however its pre-training ended; `failed` has what this command tried in vain, by key."""
    folder = place.run(job.key)
    record = store.read_as(RunRecord, folder.record) if folder.record.exists() else None
    if record is not None and record.state in ENDED:
        return record
    if job.source is not None:
        return _adopted(job, place, lambda: _pretrained(job.source, place, display, stopper, failed))
    if job.key in failed:  # a reader does not try its source again
        raise failed[job.key]
    try:
        return pretrain_run(job, folder, record, display, stopper)
    except Exception as error:
        failed[job.key] = error
        raise


def _adopted(job: Job, place: store.Study, pretrained: Callable[[], RunRecord]) -> RunRecord:
    """The record of a reader. A source that fails has readers that failed: they stay in the tables as that."""
    try:
        source = pretrained()
    except (Interrupted, CannotWrite):
        raise
    except Exception:
        record = place.run(job.source.key).record
        if record.exists():
            adopt(job, place, store.read_as(RunRecord, record))
        raise
    return adopt(job, place, source)


@contextmanager
def _failing(label: str, folder: store.RunFolder, display: Display, failures: list[str]) -> Iterator[None]:
    """What fails in here is told, kept beside the records with its traceback, and does not stop the rest.

    A full disk does: no other cell would fare better.
    """
    try:
        yield
        folder.error.unlink(missing_ok=True)
    except Interrupted:
        raise KeyboardInterrupt from None
    except CannotWrite:
        raise
    except Exception as error:
        write_atomic(folder.error, "".join(traceback.format_exception(error)))
        failures.append(f"{label}: {told(error)}\n            see {folder.error}")
        display.done(label, f"failed: {said(error)}")


def _state_line(record: RunRecord) -> str:
    if record.state != "finished":
        return f"{record.state}: {record.message}"
    return f"finished at {record.spend.share:.2%} of budget, loss {record.final_loss:.4f}"
