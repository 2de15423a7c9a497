"""How long a large study takes from its records to its tables, part by part, and as the command that a user types."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from harness.bench.many_records import write_study
from harness.bench.rounds import Spread, timed
from harness.bench.show import line, table
from harness.store import Study, uncollected

RECORDS = 10_000
ROUNDS = 3


class Took(NamedTuple):
    wall_s: float
    cpu_s: float  # of this process and of those that it waited for: what a busy neighbour does not add to


def bench(records: int = RECORDS, rounds: int = ROUNDS) -> None:
    """Print the seconds of each part, warm in one process, and of `harness table` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        line(f"writing a made-up study of {records:,} records ...")
        study, count = write_study(Path(folder), records)
        size_mb = sum(path.stat().st_size for path in _files(study)) / 1e6
        from harness.report.render import FORMATS

        found: dict[str, list[Took]] = {}
        for _ in range(rounds):
            for part, took in _parts(study).items():
                found.setdefault(part, []).append(took)
            for name in FORMATS:
                found.setdefault(f"python -m harness table STUDY --format {name}", []).append(_command(study, name))
        rows = [
            (part, *(Spread.of(values).text(".2f") for values in zip(*took, strict=True)))
            for part, took in found.items()
        ]
        table(
            f"{count:,} records, {size_mb:.0f} MB, to tables: median of {rounds} rounds (lowest to highest)",
            ["part", "wall s", "CPU s"],
            rows,
            ["The commands start Python and load what they need; the parts above them find it loaded."],
        )


def _parts(study: Study) -> dict[str, Took]:
    """What each part took in one pass; what a part makes is what the next one takes."""
    from harness.report.render import FORMATS, render
    from harness.report.tables import build

    kept: dict[str, Any] = {}

    def keep(name: str, make: Callable[[], Any]) -> Callable[[], None]:
        return lambda: kept.update({name: make()})

    seconds = {"reading the files, no more": _took(lambda: [path.read_bytes() for path in _files(study)])}
    seconds["records, read and checked"] = _took(keep("records", study.records))
    with uncollected():  # as `of_study` does it
        seconds["records to tables"] = _took(keep("tables", lambda: build(*kept["records"])))
    for name in FORMATS:
        seconds[f"tables to {name}"] = _took(lambda name=name: render(kept["tables"], name))
    return seconds


def _took(work: Callable[[], Any]) -> Took:
    before = os.times()
    wall_s = timed(work)
    return Took(wall_s, sum(os.times()[:4]) - sum(before[:4]))


def _files(study: Study) -> list[Path]:
    return sorted(study.path.rglob("*.json"))


def _command(study: Study, name: str) -> Took:
    words = [sys.executable, "-m", "harness", "table", str(study.path), "--format", name]
    return _took(lambda: subprocess.run(words, stdout=subprocess.DEVNULL, check=True))
