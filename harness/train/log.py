"""A run's log: one JSON line every few seconds, for people, for `status`, and for the clock of a killed run."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files import explain


@dataclass(frozen=True)
class Tick:
    """What a display is told every few seconds."""

    phase: str
    share: float  # of the budget
    loss: float
    img_s: float
    left_s: float | None


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add one JSON line; a kill can leave at most the last line torn, which readers skip."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            torn = file.read(1) not in (b"", b"\n")
            file.write((("\n" if torn else "") + json.dumps(line) + "\n").encode())
    except OSError as error:
        raise explain(error, path) from error


def last_ledger(path: Path) -> dict[str, float]:
    """The ledger as the log last saw it; empty without a log. The clock of an attempt that was killed."""
    if not path.exists():
        return {}
    for text in reversed(path.read_text().splitlines()):
        try:
            return json.loads(text)["ledger"]
        except (ValueError, KeyError, TypeError):
            continue
    return {}
