"""What a disturbed study came to beside an undisturbed one of the same cells: the figures that chaos is run for.

    python -m tests.cluster.compare CALM STORM

A line for each run of STORM: jobs claimed for its pre-training, how often it went on from a checkpoint, how many of its
tasks were done (each once: pre-training, and an evaluation for each snapshot), what it spent of its budget, seconds
booked as lost, and whether its final weights are CALM's to the bit. Exit status 0: every run finished, every task was
done once, count budgets ended in equal weights, and time budgets within 1 %.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from harness.budget import parse_budget
from harness.launch.folders import Attempts
from harness.launch.tasks import Task
from tests.cluster.studies import Study, pretraining

WITHIN = 0.01  # of a time budget


class Run(NamedTuple):
    """One run of the disturbed study."""

    key: str
    state: str
    jobs: int
    resumed: int
    done: list[int]  # of each task, how many attempts say that they did it
    spent: float  # of the budget, 1: all of it
    lost_s: float
    in_time: bool  # whether the budget is one
    equal: bool  # weights to the bit

    @property
    def good(self) -> bool:
        right = abs(self.spent - 1) <= WITHIN if self.in_time else self.equal
        return self.state == "finished" and set(self.done) == {1} and right


def compared(calm: Study, storm: Study) -> list[Run]:
    """Raises AssertionError where they do not have the same runs."""
    assert calm.keys == storm.keys, "the studies have different cells"
    return [_run(calm, storm, key) for key in storm.keys]


def _run(calm: Study, storm: Study, key: str) -> Run:
    record = storm.record(key)
    shares = [float(path.name.split("-")[0]) for path in storm.place.run(key).snapshots.iterdir()]
    tasks = [pretraining(key), *(Task("evaluate", key, share) for share in sorted(shares))]
    return Run(
        key,
        record.state,
        len(storm.claims(pretraining(key))),
        len(storm.resumed(key)),
        [_done(storm, task) for task in tasks],
        record.spend.share,
        record.ledger["lost"],
        parse_budget(record.cell.budget).is_time,
        storm.weights(key) == calm.weights(key),
    )


def _done(study: Study, task: Task) -> int:
    attempts = Attempts(study.place, task)
    ends = [attempts.end(claim.attempt) for claim in attempts.all()]
    return sum(end is not None and end.state == "done" for end in ends)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.compare", description=__doc__.splitlines()[0])
    parser.add_argument("calm", type=Path)
    parser.add_argument("storm", type=Path)
    asked = parser.parse_args()
    runs = compared(Study(asked.calm), Study(asked.storm))
    print(f"{'run':42} state     jobs resumed tasks     spent  lost  final weights")
    for run in runs:
        tasks = f"{sum(done == 1 for done in run.done)} of {len(run.done)} once"
        weights = "equal" if run.equal else "differ, as the clock does" if run.in_time else "DIFFER"
        print(
            f"{run.key:42} {run.state:9} {run.jobs:4} {run.resumed:7} {tasks:11} "
            f"{100 * run.spent:6.2f}% {run.lost_s:4.1f}s  {weights}"
        )
    return 0 if all(run.good for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
