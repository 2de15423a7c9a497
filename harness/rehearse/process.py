"""One attempt at a run: `harness run` in a process of its own, struck from outside or left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError

POLL_S = 0.002
GRACE_S = 120.0  # in which a run that was asked to stop has saved itself


@dataclass(frozen=True)
class Blow:
    """A signal at the moment `late_s` after the log has seen the step."""

    step: int
    number: signal.Signals
    late_s: float


@dataclass(frozen=True)
class Attempt:
    """One process: where it began, how far it came, what ended it."""

    began_at: int  # step
    lost_s: float  # that all attempts so far had booked to `lost` when this one began
    reached: int  # step
    phase: str  # "prepare" or "train"; "" before the first step
    ended_by: str  # a signal's name, "its end", or "exit status N"


def attempt(words: Sequence[str], log: Path, output: Path, blow: Blow | None = None) -> Attempt:
    """Run `harness run` with these words until it ends or is ended. `log` is the run's, `output` takes what it prints.

    Raises HarnessError where SIGTERM does not end it.
    """
    start = log.stat().st_size if log.exists() else 0
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as sink:
        command = [sys.executable, "-m", "harness", "run", *words]
        child = subprocess.Popen(command, stdout=sink, stderr=sink, start_new_session=True)
        try:
            struck = blow is not None and _strike(child, log, start, blow)
            _wait(child, struck and blow.number is signal.SIGTERM)
        finally:  # also on Ctrl-C here, and with all that the process has started
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return _told(list(_lines(log, start)), _ended_by(child.returncode, blow if struck else None))


def _strike(child: subprocess.Popen[bytes], log: Path, start: int, blow: Blow) -> bool:
    """Wait until the log has seen the step, and send the signal; False where the process ended by itself before."""
    seen = start
    while child.poll() is None:
        size = log.stat().st_size if log.exists() else 0
        if size > seen:
            seen = size
            if any(line["step"] >= blow.step for line in _lines(log, start) if "loss" in line):
                time.sleep(blow.late_s)
                child.send_signal(blow.number)  # sends nothing to a process that has ended
                return child.poll() is None or child.returncode == -blow.number
        time.sleep(POLL_S)
    return False


def _wait(child: subprocess.Popen[bytes], saving: bool) -> None:
    try:
        child.wait(GRACE_S if saving else None)
    except subprocess.TimeoutExpired:
        raise HarnessError(
            f"the run did not end within {GRACE_S:.0f} s of SIGTERM", "a run that saves itself within a step or two"
        ) from None


def _ended_by(status: int, blow: Blow | None) -> str:
    if status == 0:
        return "its end"
    if blow is not None and (status == -blow.number or blow.number is signal.SIGTERM):
        return blow.number.name
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _lines(log: Path, start: int) -> Iterator[dict[str, Any]]:
    """The whole lines of the log from byte `start` on."""
    if not log.exists():
        return
    with log.open("rb") as file:
        file.seek(start)
        for text in file.read().splitlines():
            with suppress(ValueError):  # torn by a kill, or not yet whole
                yield json.loads(text)


def _told(lines: list[dict[str, Any]], ended_by: str) -> Attempt:
    resumed = next((line for line in lines if line.get("event") == "resumed"), {"step": 0, "ledger": {}})
    last = next((line for line in reversed(lines) if "loss" in line), {"step": resumed["step"], "phase": ""})
    return Attempt(resumed["step"], resumed["ledger"].get("lost", 0.0), last["step"], last["phase"], ended_by)


def tail(output: Path, lines: int = 12) -> str:
    """The end of what the attempts printed, set in."""
    return "\n".join(f"  | {line}" for line in output.read_text(errors="replace").splitlines()[-lines:])
