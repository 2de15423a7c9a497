"""Each task's price: seconds charged to the budget, which are what the budget says, and seconds that are only shown,
which are known from records of the same or not at all.

A budget is charged once for each pre-training, however many methods read it, less what its record says is spent. One
in wall time is charged on every device of the job: devices times as many device seconds. One in counts has the price
it states; its seconds are estimated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from harness.budget import Budget
from harness.errors import HarnessError
from harness.lacking import lacking, references_lacking
from harness.launch.tasks import Task
from harness.plan.measured import NOTHING, Guess, Measured
from harness.plan.outline import Outline
from harness.plan.planned import Planned
from harness.records import ENDED, RunRecord
from harness.resolve import eval_config
from harness.shared import reads_alike


@dataclass(frozen=True)
class Priced:
    """A task with what is left of it, in seconds of its job's wall time."""

    task: Task
    done: bool = False
    devices: int = 1
    owed: float = 0.0  # of the budget, in the meter's field
    charged: Guess = field(default=Guess(0.0))
    shown: dict[str, Guess] = field(default_factory=dict)  # by what it is for

    @property
    def unknown(self) -> list[str]:
        """What no record tells the seconds of."""
        charged = [] if self.charged.seconds is not None else ["the steps"]
        return charged + [what for what, guess in self.shown.items() if guess.seconds is None]

    @property
    def shown_s(self) -> float:
        """As far as it is known."""
        return sum(guess.seconds or 0.0 for guess in self.shown.values())

    @property
    def wall_s(self) -> float:
        """As far as it is known."""
        return (self.charged.seconds or 0.0) + self.shown_s


@dataclass
class Pricing:
    """Prices of one study's tasks."""

    outline: Outline
    measured: Measured

    def __post_init__(self) -> None:
        self._truth = self.outline.truth
        self._runs = {run.key: run for job in self.outline.todo for run in (job.source or job, job)}
        self._config = cache(lambda name, size: eval_config(self.outline.study, name, size))

    def tasks(self) -> list[Priced]:
        return [self.task(task) for task in self.outline.tasks()]

    def task(self, task: Task) -> Priced:
        done = self._truth.complete(task)
        devices = self.outline.survey.devices if task.stage == "pretrain" else 1
        if done:
            return Priced(task, True, devices)
        if task.stage == "pretrain":
            return self._pretraining(task, self._runs[task.key], devices)
        if task.stage == "evaluate":
            return Priced(task, shown=dict(self._evaluation(self._runs[task.key], task.share)))
        return Priced(task, shown=dict(self._references(task.key)))

    # -- pre-training -------------------------------------------------------------------------------------------------

    def owed(self, job: Planned) -> float:
        """What is left of the budget, in the meter's field."""
        record = self._truth.record(job.key)
        if record is not None and record.state in ENDED:
            return 0.0
        return job.budget.limit * (1 - (min(1.0, record.spend.share) if record else 0.0))

    def _pretraining(self, task: Task, job: Planned, devices: int) -> Priced:
        owed = self.owed(job)
        charged = self._charged(job, owed, devices)
        links = self.outline.survey.links(charged.seconds or 0.0)
        compiled = self.measured.run(job, lambda run: run.ledger.get("compile"))
        saved = self.measured.run(job, _checkpoint_share)
        shown = {
            "compile": compiled.times(links),  # every job of a chain starts anew
            "checkpoint": NOTHING if charged.seconds is None else saved.times(charged.seconds),
        }
        return Priced(task, False, devices, owed, charged, shown)

    def _charged(self, job: Planned, owed: float, devices: int) -> Guess:
        """Wall seconds of what is owed: exact for budgets in time."""
        if job.budget.reads == "device_s":
            return Guess(owed / devices)
        if job.budget.reads == "wall_s":
            return Guess(owed)
        return self.measured.run(job, lambda run: _unit_s(run, job, devices)).times(owed)

    def too_small(self, job: Planned) -> HarnessError | None:
        """The refusal of a budget that, as far as records tell, does not buy a step."""
        budget, batch = job.budget, job.train.batch_size
        if budget.is_time:
            step = self.measured.run(job, lambda run: _step_s(run, job, self.outline.survey.devices))
            devices = self.outline.survey.devices if budget.reads == "device_s" else 1
            if step.seconds is None or step.seconds * devices <= 1.5 * budget.limit:
                return None
            return _too_small(budget, f"a step took {step.seconds:.3g} s in {step.records} earlier run(s)")
        images = _images(budget, batch, job.data.fit_n)
        if budget.reads == "flop":
            flop = self.measured.run(job, lambda run: run.cost.flop_train_img if run.cost else None)
            images = None if flop.seconds is None else budget.limit / flop.seconds
        if images is None or images >= 1:
            return None
        return _too_small(budget, "it buys no image")

    # -- what is never charged ----------------------------------------------------------------------------------------

    def _evaluation(self, job: Planned, share: float | None) -> Iterator[tuple[str, Guess]]:
        """Of each eval that is missing; what a reader takes over from its source costs nothing."""
        asked = {other.key for other in self.outline.todo}
        for name, quick in lacking(job, self.outline.study, self.outline.place, share, self.outline.data_dir):
            if job.source is not None and job.source.key in asked and reads_alike(name, job):
                continue
            what = f"{name}{' (quick)' if quick else ''} of {job.cell.method}"
            yield what, self.measured.eval(name, self._config(name, job.cell.size), job, quick)

    def _references(self, dataset: str) -> Iterator[tuple[str, Guess]]:
        data = next(job.data for job in self.outline.todo if job.cell.dataset == dataset)
        missing = references_lacking(data, self.outline.study, self.outline.place, self.outline.data_dir)
        for title, size, _, configs in missing:
            for name, config in configs.items():
                yield f"{name} of {title}", self.measured.reference(name, config, title, dataset, size)


def _images(budget: Budget, batch: int, epoch_img: int) -> float | None:
    of = {"step": batch, "img": 1, "epoch": epoch_img}
    return round(budget.limit * of[budget.reads]) if budget.reads in of else None


def _too_small(budget: Budget, why: str) -> HarnessError:
    return HarnessError(
        f"the budget {budget} is too small: {why}", "room for many steps", "a larger --budget, or a smaller "
        "train.batch_size",
    )  # fmt: skip


def _comparable(run: RunRecord, job: Planned, devices: int) -> bool:
    """Whether the run's steps took what the job's will: on as many devices, with as many images."""
    counted = 1 if run.environment is None else run.environment.devices
    return counted == devices and run.train.get("batch_size") == job.train.batch_size


def _unit_s(run: RunRecord, job: Planned, devices: int) -> float | None:
    """Wall seconds of one unit of the job's budget."""
    units = getattr(run.spend, job.budget.reads)
    return run.spend.wall_s / units if units and _comparable(run, job, devices) else None


def _step_s(run: RunRecord, job: Planned, devices: int) -> float | None:
    if run.cost is None or not run.cost.img_s or not _comparable(run, job, devices):
        return None
    return job.train.batch_size / run.cost.img_s


def _checkpoint_share(run: RunRecord) -> float | None:
    """Seconds of saving for a charged second."""
    return run.ledger["checkpoint"] / run.spend.wall_s if run.spend.wall_s and "checkpoint" in run.ledger else None
