"""This process as an executor: one task after another, in its own memory, shown as it goes."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType

from harness.display import Display
from harness.errors import CannotWrite, said, told
from harness.files import write_atomic
from harness.launch.folders import Attempts, Claim, End, now
from harness.launch.here import Here, Key
from harness.launch.standing import OVER, Standing
from harness.launch.tasks import Stage, parse
from harness.launch.truth import Truth
from harness.records import ENDED, state_line
from harness.signals import Stopper

TURNS: tuple[Stage, ...] = ("evaluate", "pretrain", "references")  # what goes first of all that could


@dataclass
class Inline(Here):
    """Does the tasks that it holds while the driver waits: the evaluations of a run before the next run is trained."""

    name: str = field(default="inline", kw_only=True)
    truth: Truth | None = None  # of the tasks; none for one that only looks
    display: Display | None = None
    stopper: Stopper | None = None
    failed: set[str] = field(default_factory=set)  # keys of tasks that failed

    def wait(self, seconds: float) -> None:
        """Do one task, if there is one. Raises KeyboardInterrupt when asked to stop, and CannotWrite: no other task
        would fare better on a full disk."""
        if not self._waiting:  # what is left is another command's, where the file system has no locks
            time.sleep(seconds)
            return
        key = min(self._waiting, key=lambda key: TURNS.index(parse(self.named(key)).stage))
        self._do(key, self._waiting.pop(key))

    def _do(self, key: Key, attempt: int) -> None:
        """What the task fails of is told, and kept with its traceback where a job's log is."""
        from harness.launch.worker import perform
        from harness.train.pretraining import Interrupted

        task = self.truth.task(self.named(key))
        attempts = Attempts(self.place, task)
        try:
            perform(task, self.truth, attempt, self.stopper, self.display)
            end = End(state="done", at=now())
        except (KeyboardInterrupt, Interrupted):
            by = f"stopped by {self.stopper.by}" if self.stopper.by else "stopped"
            attempts.ended(attempt, End(state="stopped", kind="signal", message=by, at=now()))
            raise KeyboardInterrupt from None
        except CannotWrite:
            raise
        except Exception as error:
            write_atomic(self.folder(key) / "0_log.err", "".join(traceback.format_exception(error)))
            end = End(state="failed", kind="error", message=told(error), at=now())
            self.failed.add(task.key)
            label = task.label if task.stage == "references" else self.truth.job(task.key).label
            self.display.done(label, f"failed: {said(error)}")
        attempts.ended(attempt, end)

    def cancel(self, claims: Iterable[Claim]) -> list[str]:
        """Nothing of the claims that waits is begun."""
        return [f"{batch}/{index}" for batch, index in self.drop(claims)]


class Shown:
    """The runs, on the display that their work is shown on; one of which nothing is left to do is done."""

    def __init__(self, executor: Inline) -> None:
        self.display, self.truth, self.failed = executor.display, executor.truth, executor.failed
        self._done: set[str] = set()

    def __enter__(self) -> Shown:
        self.display.start([job.label for job in self.truth.todo])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.stop()

    def __call__(self, standings: dict[str, Standing]) -> None:
        left = {standing.task.key for standing in standings.values() if standing.state not in OVER}
        for job in self.truth.todo:
            if job.key in left or job.key in self._done:
                continue
            self._done.add(job.key)
            record = self.truth.record(job.key)
            if record is not None and record.state in ENDED and job.key not in self.failed:
                self.display.done(job.label, state_line(record))
