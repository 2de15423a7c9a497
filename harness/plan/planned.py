"""Cells as a plan knows them: what their methods' code says of them, kept between commands.

Importing torch and the methods takes seconds, and only what they say is wanted: each cell's config, what its method can
do, whose pre-training it reads. All of it comes from resolving the cell as `run` does, now or in an earlier command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.answers import Answers
from harness.budget import Budget, check_devices, parse_budget
from harness.config import plain
from harness.data.glance import Glance, glance
from harness.data.spec import DataSpec
from harness.plugins import card, method_plugins
from harness.records import Cell
from harness.resolve import Job, check_idle_sections, key, require_all, resolve, settled
from harness.study import Study
from harness.train.settings import TrainConfig


@dataclass(frozen=True)
class Planned:
    """Stands for a Job where nothing is trained or evaluated."""

    cell: Cell
    key: str
    budget: Budget
    config: dict[str, Any]  # the method's, as plain values
    train: TrainConfig
    data: Glance
    verbs: frozenset[str]  # as Job.verbs
    departs: frozenset[str] | None  # as Job.departs
    job: Callable[[], Job] = field(repr=False, compare=False)  # the Job itself, which imports its method
    source: Planned | None = None

    @property
    def label(self) -> str:
        return self.cell.label


def settings(study: Study) -> dict[str, Any]:
    """All that the study says of methods: a cell may hang on the settings of another's, whose pre-training it reads."""
    known = method_plugins() if study.overrides else ()
    return {name: values for name, values in study.overrides.items() if name in known}


def planned(study: Study, cell: Cell, data: Glance, answers: Answers, given: dict[str, Any]) -> Planned:
    """One cell of the study, whose `settings` are `given`. Raises HarnessError when it cannot run."""
    made: list[Job] = []

    def job() -> Job:
        if not made:
            made.append(resolve(study, cell, lambda name: data))
        return made[0]

    answer = answers.ask(_question(cell, data.spec, given), lambda: _said(job()))
    card(cell.method)  # no code: read each time
    return _planned(*settled(study, cell, data), answer, data, job)


def of_job(job: Job, data: Glance, answers: Answers, given: dict[str, Any]) -> Planned:
    """The cell of a Job that is there already; what its code says is kept for later plans."""
    answer = answers.ask(_question(job.cell, data.spec, given), lambda: _said(job))
    return _planned(job.cell, job.train, answer, data, lambda: job)


def jobs(study: Study, data_dir: Path | None, gpus: int) -> list[Planned]:
    """`resolve.jobs` for a look: every cell, or the same HarnessError. Data that are not decoded have no revision."""
    answers, given = Answers(), settings(study)
    sets: dict[str, Glance] = {}
    found = []
    for cell in study.cells():
        check_devices(parse_budget(cell.budget), gpus)
        data = sets.get(cell.dataset) or glance(cell.dataset, data_dir, False, answers)
        sets[cell.dataset] = data
        found.append(planned(study, cell, data, answers, given))
    require_all(study, data_dir)
    check_idle(study, found[0].data, answers)
    return sorted(found, key=lambda job: job.source is not None)  # readers after what they read


def _question(cell: Cell, spec: DataSpec, given: dict[str, Any]) -> dict[str, Any]:
    return {"cell": [cell.method, cell.size, asdict(spec)], "settings": given}


def _said(job: Job) -> dict[str, Any]:
    """What the code says of a cell, as plain values; all that `_planned` reads."""
    return {
        "method": job.cell.method,
        "config": plain(job.config),
        "verbs": sorted(job.verbs),
        "departs": None if job.departs is None else sorted(job.departs),
        "source": None if job.source is None else _said(job.source),
    }


def _planned(cell: Cell, train: TrainConfig, answer: dict[str, Any], data: Glance, job: Callable[[], Job]) -> Planned:
    cell = cell.model_copy(update={"method": answer["method"]})
    read = answer["source"]
    return Planned(
        cell,
        key(cell, answer["config"], train, data.revision),
        parse_budget(cell.budget),
        answer["config"],
        train,
        data,
        frozenset(answer["verbs"]),
        None if answer["departs"] is None else frozenset(answer["departs"]),
        job,
        None if read is None else _planned(cell, train, read, data, lambda: job().source),
    )


def check_idle(study: Study, data: Glance, answers: Answers) -> None:
    """`check_idle_sections`, without importing again whose settings were found good."""
    used = {*study.methods, *study.evals}
    idle = {name: values for name, values in study.overrides.items() if name not in used}
    if idle:
        answers.ask({"idle": idle, "for": asdict(data.spec)}, lambda: check_idle_sections(study, data.spec))
