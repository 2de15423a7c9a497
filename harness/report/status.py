"""Where each run of a study stands: its record and the last line of its log."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.budget import parse_budget
from harness.errors import HarnessError
from harness.records import ENDED, Cell, RunRecord, State
from harness.report import format as fmt
from harness.store import Study
from harness.study import RELEASED

if TYPE_CHECKING:
    from rich.table import Table as Grid

    from harness.launch.drive import Driver
    from harness.launch.standing import Standing

TAIL_BYTES = 1 << 16
WATCH_S = 3.0
MANY = 20  # runs that have not begun: then they are counted
COLOURS = {
    "finished": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "diverged": "red",
    "failed": "red",
}


@dataclass(frozen=True)
class Status:
    """One run. `share` and the rest of the log's words are None before its first line."""

    key: str
    cell: Cell
    state: State
    share: float
    spent: str  # in the budget's unit
    attempts: int
    message: str | None
    step: int | None = None
    loss: float | None = None
    img_s: float | None = None
    age_s: float | None = None  # of the last log line


def rows(study: Study, now: datetime | None = None) -> list[Status]:
    """Every run of the study, by cell."""
    now = now or datetime.now(UTC)
    found = [_status(run, _last_line(study.run(run.key).log), now) for run in study.runs()]
    return sorted(found, key=lambda s: (*s.cell.model_dump().values(), s.key))


def _status(run: RunRecord, last: dict[str, Any], now: datetime) -> Status:
    # The log is written every few seconds, the record when the state changes: while it runs, the log knows more.
    share = last.get("share") if run.state == "running" else None
    share = run.spend.share if share is None else float(share)
    return Status(
        run.key,
        run.cell,
        run.state,
        share,
        _spent(run.cell.budget, share),
        run.attempts,
        run.message,
        last.get("step"),
        last.get("loss"),
        last.get("img_s"),
        _age_s(last.get("at"), now),
    )


def _spent(text: str, share: float) -> str:
    try:
        budget = parse_budget(text)
    except HarnessError:  # a unit that this version does not know: the share still says it
        return fmt.MISSING
    return f"{fmt.significant(budget.amount * share)}{budget.unit}"


def _age_s(at: str | None, now: datetime) -> float | None:
    try:
        moment = datetime.fromisoformat(at or "")
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (now - moment).total_seconds()


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a log, or {}: a run that was killed or is writing now may leave half a line."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            return entry
    return {}


def grid(found: list[Status], jobs: Mapping[str, Standing] | None = None) -> Grid:
    """The states as a table for rich; with `jobs`, what the job of each run is at, by the run's key."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    table = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")  # the key spells the cell
    table.add_column("state")
    for name in ("share", "spent", "tries"):
        table.add_column(name, justify="right")
    if jobs is not None:
        table.add_column("job", overflow="fold")
    table.add_column("last word", overflow="fold")
    for status in found:
        state = Text(status.state, style=COLOURS.get(status.state, ""))
        share, spent = f"{100 * status.share:.1f}%", f"{status.spent} of {status.cell.budget}"
        if status.cell.budget == RELEASED:
            share, spent = fmt.MISSING, RELEASED
        job = [] if jobs is None else [Text(_job(jobs.get(status.key)))]
        table.add_row(Text(status.key), state, share, spent, str(status.attempts), *job, Text(_said(status)))
    return table


def _job(standing: Standing | None) -> str:
    """`evaluate-1.0000 running on n2`."""
    if standing is None:
        return fmt.MISSING
    where = f" on {standing.where}" if standing.where else ""
    return f"{standing.task.kind} {standing.why or standing.state}{where}"


def show(study: Study, watch: bool = False) -> None:
    """Print where each run of the study stands, and its jobs where it has any; again and again with `watch`."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    study.asked()  # a folder that holds no study is told apart from a study that has no run yet
    look = _Looked(study)
    if not watch:
        console = Console()
        for part in look():
            if isinstance(part, str):  # a command to be copied is not to be broken into lines
                console.print(part, markup=False, highlight=False, soft_wrap=True)
            else:
                console.print(part)
        return
    with Live(refresh_per_second=2) as live:
        while True:
            live.update(Group(*(Text(part) if isinstance(part, str) else part for part in look())))
            time.sleep(WATCH_S)


@dataclass
class _Looked:
    """What a user is shown of a study, again and again; what was seen before is remembered."""

    study: Study
    _driver: Driver | None = None

    def __call__(self) -> list[Any]:
        from harness.launch import command
        from harness.launch.show import by_run, told_state

        found = rows(self.study)
        asked = command.read_launch(self.study)
        if asked is None or (asked.launch.cluster == "inline" and _told_whole(self.study, found)):
            return [grid(found)]
        try:
            self._driver = self._driver or command.looking(self.study)
            standings = self._driver.look()
        except HarnessError as error:  # the queue cannot be asked from here or now: the folder still knows this much
            return [*([grid(found)] if found else []), f"of its tasks nothing is known here: {error}"]
        found = rows(self.study)  # anew: to look takes its time, the first time seconds
        begun = {status.key for status in found}
        absent = [s for s in standings.values() if s.task.stage == "pretrain" and s.task.key not in begun]
        table = [grid(found, by_run(standings))] if found else []
        return [*table, *_not_begun(absent), told_state(standings), *_stalled(self._driver, standings)]


def _told_whole(study: Study, found: list[Status]) -> bool:
    """Whether the last command came to its end: every run has ended, and the tables are newer than it."""
    from harness.launch.command import LAUNCH

    ended, made = {status.key for status in found if status.state in ENDED}, study.tables()
    if not made.exists() or not ended >= set(study.asked().keys):
        return False
    return made.stat().st_mtime >= (study.path / LAUNCH).stat().st_mtime


def _stalled(driver: Driver, standings: Mapping[str, Standing]) -> list[str]:
    """What to do where the job that should go on has failed, or is gone, with tasks left to do."""
    from harness.launch.folders import Batches, Claim

    states, place = {standing.state for standing in standings.values()}, driver.place
    if states & {"running", "queued"}:
        return []
    closing, error = next(iter(Batches(place).closing()), None), None
    left = bool(states & {"missing", "waiting"})
    if not left and (closing is None or _made_since(place, closing)):
        return []
    if closing is not None:
        job = driver.executor.look([closing])(Claim(attempt=1, batch=closing, index=0))
        if job is not None and job.alive:
            return [f"the job that {'goes on' if left else 'makes the tables'} is in the queue"]
        error = Batches(place).error(closing)
    nowhere = "in the queue" if driver.executor.chains else "running"
    said = [f"nothing of it is {nowhere}, and it is not complete" if left else "its tables were not made"]
    said += [f"the job that was to {'go on' if left else 'make them'} failed: {error}"] if error else []
    does = ("submit what is missing" if driver.executor.chains else "do the rest") if left else "make them"
    if not left and states != {"done"}:
        does = "try again what failed or was cancelled, and make them"
    next_steps = [f"  python -m harness resume {place.path}         {does}"]
    if closing is not None:
        next_steps.append(f"  python -m harness logs {place.path} tables    what the last job printed")
    return [*said, *next_steps]


def _made_since(place: Study, batch: str) -> bool:
    """Whether the tables are newer than the batch."""
    from harness.launch.folders import Batches

    made = place.tables()
    return made.exists() and made.stat().st_mtime >= Batches(place).written_at(batch)


def _not_begun(absent: list[Standing]) -> list[str]:
    """A line for each run without a record, or where they are many, for each reason."""
    if len(absent) <= MANY:
        return [f"{s.task.label}: {s.why or s.state}" for s in absent]
    return [f"{n} runs: {why}" for why, n in Counter(s.why or s.state for s in absent).most_common()]


def _said(status: Status) -> str:
    if status.message:
        return status.message
    words = [f"loss {fmt.significant(status.loss)}"] if isinstance(status.loss, float) else []
    words += [f"{fmt.significant(status.img_s)} img/s"] if isinstance(status.img_s, float | int) else []
    if status.state == "running":
        words += [f"{fmt.age(status.age_s)} ago"] if status.age_s is not None else ["no log yet"]
    return ", ".join(words) or fmt.MISSING
