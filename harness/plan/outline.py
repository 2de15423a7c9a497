"""The cells of a study that can run, and everything that `run` would refuse: it stops at the first, a plan does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import store
from harness.answers import Answers
from harness.budget import check_devices, parse_budget
from harness.data.glance import Glance, glance
from harness.errors import HarnessError
from harness.launch.tasks import Task, graph
from harness.launch.truth import Truth
from harness.plan.planned import Planned, check_idle, planned, settings
from harness.plan.survey import Survey
from harness.records import Cell
from harness.resolve import eval_config, require
from harness.study import Study
from harness.train import track
from harness.train.settings import check_batch


@dataclass
class Refusals:
    """Errors by what they say, each with what it is said of."""

    by_text: dict[str, tuple[HarnessError, list[str]]] = field(default_factory=dict)

    def add(self, error: HarnessError, of: str = "") -> None:
        _, whom = self.by_text.setdefault(str(error), (error, []))
        if of and of not in whom:
            whom.append(of)


@dataclass
class Outline:
    """A study as it stands in its folder."""

    study: Study
    place: store.Study
    survey: Survey
    data_dir: Path | None
    answers: Answers
    todo: list[Planned] = field(default_factory=list)
    refused: Refusals = field(default_factory=Refusals)
    sets: dict[str, Glance] = field(default_factory=dict)

    @property
    def truth(self) -> Truth:
        return Truth(self.study, self.place, self.todo, self.data_dir)

    def tasks(self) -> list[Task]:
        return graph(self.study, self.todo)

    def sources(self) -> list[Planned]:
        """The runs that are pre-trained, one for all that read it."""
        return list({run.key: run for run in (job.source or job for job in self.todo)}.values())


def outline(study: Study, out: Path, data_dir: Path | None, survey: Survey) -> Outline:
    """Resolve what can be resolved, and gather why the rest cannot."""
    found = Outline(study, store.Study(out / study.folder_name()), survey, data_dir, Answers())
    for problem in survey.problems:
        found.refused.add(problem)
    exact = any(next(found.place.path.glob(p), None) for p in ("runs/*/run.json", "references/*/*/*.json"))
    for name in study.dataset:
        try:
            # Nothing is recognised where there are no records.
            found.sets[name] = glance(name, data_dir, exact, found.answers)
        except HarnessError as error:
            found.refused.add(error)
    given = settings(study)
    for cell in study.cells():
        if cell.dataset in found.sets:
            _resolve(cell, found, given)
    found.todo.sort(key=lambda job: job.source is not None)
    _refuse(found)
    return found


def _resolve(cell: Cell, found: Outline, given: dict[str, Any]) -> None:
    try:
        found.todo.append(planned(found.study, cell, found.sets[cell.dataset], found.answers, given))
    except HarnessError as error:
        found.refused.add(error, f"{cell.method} {cell.dataset} {cell.size}")


def _refuse(found: Outline) -> None:
    """What does not hang on a single cell."""
    study, survey = found.study, found.survey
    for name in study.evals:
        for size in study.size:
            _try(found, lambda name=name, size=size: require(name, eval_config(study, name, size), found.data_dir))
    if survey.fits is None:  # on a cluster it is among the survey's problems
        for text in study.budget:
            _try(found, lambda text=text: check_devices(parse_budget(text), survey.gpus))
    _try(found, lambda: track.require(study.train.track))
    for job in found.sources():
        _try(found, lambda job=job: check_batch(job.train.batch_size, "train.batch_size", survey.devices), job.label)
    for data in list(found.sets.values())[:1]:
        _try(found, lambda data=data: check_idle(study, data, found.answers))


def _try(found: Outline, check: Callable[[], object], of: str = "") -> None:
    try:
        check()
    except HarnessError as error:
        found.refused.add(error, of)
