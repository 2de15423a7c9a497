"""The driver: brings a study from where it stands to finished tables, one cell after another in this process.

Idempotent: it asks the store what is done and does the rest. Nothing finished is redone, nothing is counted twice.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import store
from harness.display import Display
from harness.errors import CannotWrite, HarnessError
from harness.evaluate_run import evaluate_references, evaluate_run
from harness.files import explain, write_atomic
from harness.pretrain_run import pretrain_run
from harness.records import RunRecord, StudyRecord
from harness.resolve import Job, jobs
from harness.signals import Stopper
from harness.study import Study, build, merge
from harness.train.pretraining import Interrupted

ENDED = ("finished", "diverged")


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the study for this process; the kernel lets go when the process ends, however it ends."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 (held until the study is done)
    except OSError as error:
        raise explain(error, folder) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HarnessError(
            f"another process is working on the study {folder}",
            "one writer a study",
            f"python -m harness status {folder} shows how far it is; or choose another folder with --name",
        ) from None
    try:
        yield
    finally:
        lock.close()


def run_study(study: Study, out: Path, display: Display, stopper: Stopper, data_dir: Path | None = None) -> store.Study:
    """Every cell pre-trained and evaluated. Returns the study's folder.

    A cell that diverges or fails is recorded as what it is and the others go on.
    Raises KeyboardInterrupt when asked to stop, after saving.
    """
    todo = jobs(study, data_dir)
    place = store.Study(out / study.folder_name())
    with only_writer(place.path):
        asked = StudyRecord(request=study.asked(), keys=[job.key for job in todo])
        write_atomic(place.path / "study.json", asked.model_dump_json(indent=1) + "\n")
        display.start([job.label for job in todo])
        try:
            for job in todo:
                _bring_to_end(job, study, place, display, stopper)
            _references(todo, study, place, display)
        finally:
            display.stop()
    return place


def evaluate_study(
    place: store.Study, evals: str, words: dict[str, Any], display: Display, data_dir: Path | None = None
) -> None:
    """The named evals, with settings from `words`, on every finished run of a study. Trains nothing.

    Raises HarnessError when the study's code or data changed so that its runs cannot be recognised.
    """
    asked = place.asked()
    study = build(merge(asked.request, {"evals": evals, **words}))
    with only_writer(place.path):
        todo = [job for job in jobs(study, data_dir) if place.run(job.key).record.exists()]
        if not todo:
            raise HarnessError(
                f"none of the study's {len(asked.keys)} runs is recognised: its settings, data or interface changed",
                "the code and data that made the study",
                f"python -m harness status {place.path}",
            )
        display.start([job.label for job in todo])
        try:
            for job in todo:
                record = store.read_as(RunRecord, place.run(job.key).record)
                if record.state == "finished":
                    evaluate_run(job, study, place, display)
                display.done(job.label, _state_line(record))
            _references(todo, study, place, display)
        finally:
            display.stop()


def _references(todo: list[Job], study: Study, place: store.Study, display: Display) -> None:
    for data in {job.cell.dataset: job.data for job in todo}.values():
        evaluate_references(data, study, place, display)


def _bring_to_end(job: Job, study: Study, place: store.Study, display: Display, stopper: Stopper) -> None:
    """One cell, pre-trained and evaluated."""
    folder = place.run(job.key)
    record = store.read_as(RunRecord, folder.record) if folder.record.exists() else None
    try:
        if record is None or record.state not in ENDED:
            record = pretrain_run(job, folder, record, display, stopper)
        if record.state == "finished":
            evaluate_run(job, study, place, display)
        display.done(job.label, _state_line(record))
    except Interrupted:
        raise KeyboardInterrupt from None
    except CannotWrite:
        raise
    except Exception as error:
        _record_failure(job, folder, error)
        display.done(job.label, f"failed: {_said(error)} (see {folder.path / 'error.txt'})")


def _state_line(record: RunRecord) -> str:
    if record.state != "finished":
        return f"{record.state}: {record.message}"
    return f"finished at {record.spend.share:.2%} of budget, loss {record.final_loss:.4f}"


def _said(error: Exception) -> str:
    """An error in one line; our own are sentences already."""
    first = (str(error).splitlines() or [""])[0]
    return first if isinstance(error, HarnessError) else f"{type(error).__name__}: {first}"


def _record_failure(job: Job, folder: store.RunFolder, error: Exception) -> None:
    """A cell that crashed stays in the table as what it is; its traceback lies beside its record."""
    write_atomic(folder.path / "error.txt", "".join(traceback.format_exception(error)))
    if not folder.record.exists():
        return
    record = store.read_as(RunRecord, folder.record)
    if record.state not in ENDED:
        failed = {"state": "failed", "message": _said(error)}
        store.write(folder.record, record.model_copy(update=failed))
