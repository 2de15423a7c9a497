"""Evaluating the finished runs of a study anew, in this process: `harness eval`."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import machine, store
from harness.display import Display
from harness.errors import CannotWrite, HarnessError, said, told
from harness.evaluate_run import evaluate_references, evaluate_run
from harness.files import write_atomic
from harness.lock import only_writer
from harness.plugins import eval_plugins
from harness.records import RunRecord, state_line
from harness.resolve import Job, jobs
from harness.study import Study, build, merge


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
        meant = [job for job in todo if not only or job.key in only]
        return failures + _evaluated(meant, study, place, display, data_dir, force)


def _evaluated(
    todo: list[Job], study: Study, place: store.Study, display: Display, data_dir: Path | None, force: bool
) -> list[str]:
    """Evaluate every run that finished, and then the references; a line for each that failed."""
    failures: list[str] = []
    done: set[Path] = set()  # eval records that this command has written
    for job in todo:  # before any work: the code that runs is that of now
        machine.code(job.method_class)
    display.start([job.label for job in todo])
    try:
        for job in todo:
            with _failing(job.label, place.run(job.key), display, failures):
                record = store.read_as(RunRecord, place.run(job.key).record)
                if record.state == "finished":
                    evaluate_run(job, study, place, display, data_dir, force, done)
                else:
                    failures.append(f"{job.label}: {state_line(record)}")
                display.done(job.label, state_line(record))
        for data in {job.cell.dataset: job.data for job in todo}.values():
            with _failing(f"references of {data.spec.name}", place.references(data.spec.name), display, failures):
                evaluate_references(data, study, place, display, data_dir, force)
    finally:
        display.stop()
    return failures


@contextmanager
def _failing(label: str, folder: store.RunFolder, display: Display, failures: list[str]) -> Iterator[None]:
    """What fails in here is told, kept beside the records with its traceback, and does not stop the rest.

    A full disk does: no other cell would fare better.
    """
    try:
        yield
        folder.error.unlink(missing_ok=True)
    except CannotWrite:
        raise
    except Exception as error:
        write_atomic(folder.error, "".join(traceback.format_exception(error)))
        failures.append(f"{label}: {told(error)}\n            see {folder.error}")
        display.done(label, f"failed: {said(error)}")
