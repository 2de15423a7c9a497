"""How a job begins: with its handlers of signals, then with what takes seconds to import."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.signals import Stopper
from harness.store import uncollected


@dataclass(frozen=True)
class Work:
    """The element `index` of a batch; what submitit pickles, so it holds nothing but names."""

    study: str
    batch: str
    index: int
    attempt: int

    def __call__(self) -> str:
        """Do the task. Exits with a status that says how, where it did not come to its end."""
        from harness.launch import submit

        submit.inside_job(Path(self.study), self.batch)
        with Stopper().installed(in_job=True) as stopper:
            with stopper.graceful(), uncollected():  # a fifth of the time that torch takes
                from harness.launch import worker
            state = worker.work(self, stopper)
            if state == "stopped" and stopper.again and worker.ranks().first:
                if worker.fruitless(self):
                    state = "failed"
                elif submit.requeue_self():
                    sys.exit(0)  # SLURM ends this process any moment and starts it again later
            if not worker.ranks().first and (state == "stopped" or stopper.by):
                return state  # the first process speaks for all: a bad exit of another would end it at its last words
        if state == "done":
            return state
        sys.exit(worker.AGAIN if state == "stopped" else 1)

    def checkpoint(self) -> Any:
        """For a signal that comes before our own handler is there: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
