"""What a user sees while it works: a bar per run on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from harness.train.log import Tick

PLAIN_EVERY_S = 5.0


class Display(Protocol):
    """Told by the driver; knows nothing of runs but their labels."""

    def start(self, labels: list[str]) -> None: ...
    def tick(self, label: str, tick: Tick) -> None: ...
    def phase(self, label: str, what: str) -> None: ...
    def done(self, label: str, state: str) -> None: ...
    def say(self, line: str) -> None: ...
    def stop(self) -> None: ...


def duration(seconds: float | None) -> str:
    """`1:05:09`, `5:09`, or a dash when not known."""
    if seconds is None:
        return "–"
    minutes, s = divmod(max(0, round(seconds)), 60)  # a run that overspends has nothing left
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Plain:
    """Lines for logs and pipes."""

    def __init__(self) -> None:
        self._last = 0.0

    def start(self, labels: list[str]) -> None:
        self.say(f"{len(labels)} run(s): {', '.join(labels)}")

    def tick(self, label: str, tick: Tick) -> None:
        if time.monotonic() - self._last < PLAIN_EVERY_S:
            return
        self.say(
            f"{label}  {tick.phase}  {tick.share:6.1%} of budget  loss {tick.loss:.4f}  "
            f"{tick.img_s:,.0f} img/s  {duration(tick.left_s)} left"
        )

    def phase(self, label: str, what: str) -> None:
        self.say(f"{label}  {what}")

    def done(self, label: str, state: str) -> None:
        self.say(f"{label}  {state}")

    def say(self, line: str) -> None:
        print(line, flush=True)
        self._last = time.monotonic()

    def stop(self) -> None:
        return


class Live:
    """A rich table of bars, one per run, over the share of the budget."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>5.1f} %"),
            TextColumn("{task.fields[what]}", markup=False),  # an error's brackets are no markup
            console=Console(),
            refresh_per_second=4,
        )
        self._tasks: dict[str, object] = {}

    def start(self, labels: list[str]) -> None:
        self._progress.start()
        for label in labels:
            self._tasks[label] = self._progress.add_task(label, total=1.0, what="queued")

    def tick(self, label: str, tick: Tick) -> None:
        what = f"{tick.phase}  loss {tick.loss:.4f}  {tick.img_s:,.0f} img/s  {duration(tick.left_s)} left"
        self._progress.update(self._tasks[label], completed=min(1.0, tick.share), what=what)

    def phase(self, label: str, what: str) -> None:
        if label in self._tasks:
            self._progress.update(self._tasks[label], what=what)
        else:
            self.say(f"{label}  {what}")

    def done(self, label: str, state: str) -> None:
        if label in self._tasks:
            completed = {"completed": 1.0} if state.startswith("finished") else {}
            self._progress.update(self._tasks[label], what=state, **completed)

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False)

    def stop(self) -> None:
        self._progress.stop()


def choose() -> Display:
    """Bars on a terminal, lines elsewhere."""
    return Live() if sys.stdout.isatty() else Plain()
