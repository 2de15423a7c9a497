"""What a user sees of a launched study: counts on a line, a table of runs on a terminal."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING

from harness.display import duration
from harness.launch.standing import Standing

if TYPE_CHECKING:
    from harness.launch.drive import Driver

STATES = ("done", "running", "queued", "waiting", "missing", "failed", "skipped", "cancelled")
PLAIN_EVERY_S = 30.0


def told_state(standings: dict[str, Standing]) -> str:
    """`3 of 12 tasks done, 2 running, 7 queued`."""
    counts = Counter(s.state for s in standings.values())
    rest = [f"{counts[state]} {state}" for state in STATES[1:] if counts[state]]
    return ", ".join([f"{counts['done']} of {len(standings)} tasks done", *rest])


def left(driver: Driver) -> str:
    """What a user who leaves is told; before the first round is over, that not everything is in the queue."""
    path = driver.place.path
    said = "left: the jobs go on without this command, and the last one makes the tables"
    if not driver.whole:
        said = "left before everything was submitted: what is in the queue goes on, and `resume` submits the rest"
    elif not driver.closed:
        said = "left: the jobs go on without this command; `resume` makes the tables when they have ended"
    return (
        f"\n{said}\n"
        f"  python -m harness status {path} --watch    where they stand\n"
        f"  python -m harness resume {path}            wait for them again, and submit what is missing\n"
        f"  python -m harness cancel {path}            end them"
    )


def by_run(standings: dict[str, Standing]) -> dict[str, Standing]:
    """What each run is at, by its key: the first of its tasks that runs, else the first that waits."""
    found: dict[str, Standing] = {}
    for state in ("queued", "running"):
        for standing in reversed(standings.values()):
            if standing.state == state:
                found[standing.task.key] = standing
    return found


class Watched:
    """Shows standings as they change: a live table on a terminal, a line elsewhere."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._live = None
        self._said, self._said_at, self._begun = "", float("-inf"), time.monotonic()

    def __enter__(self) -> Watched:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(refresh_per_second=2)
            self._live.start()
            self.driver.say = lambda line: self._live.console.print(line, markup=False, highlight=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, standings: dict[str, Standing]) -> None:
        line = told_state(standings)
        if self._live is not None:
            from rich.console import Group

            from harness.report.status import grid, rows

            self._live.update(Group(grid(rows(self.driver.place), by_run(standings)), line))
            return
        if line != self._said or time.monotonic() - self._said_at >= PLAIN_EVERY_S:
            print(f"{duration(time.monotonic() - self._begun)}  {line}", flush=True)
            self._said, self._said_at = line, time.monotonic()
