"""Signals: a run in training saves itself first; anything else stops at once and leaves nothing half.

Ctrl-C, SIGTERM and a lost connection (SIGHUP, unless `nohup` has it ignored) stop; inside a job SIGUSR2, which the
cluster sends before the time limit and at a preemption, asks for the same and for another turn.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopper:
    """Turns the first signal into a wish that training honours at its next step; a second one is not asked twice."""

    def __init__(self) -> None:
        self.asked = False
        self.by = ""  # the name of the first signal
        self.again = False  # whether the job is to be run again
        self._graceful = False
        self._in_job = False

    @contextmanager
    def installed(self, in_job: bool = False) -> Iterator[Stopper]:
        """Handle signals while this is open. In a job one is enough: what follows it must not disturb the saving."""
        self._in_job = in_job
        numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR2] if in_job else [])]
        numbers += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL else []
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def graceful(self) -> Iterator[None]:
        """While this is open, one signal only sets `asked`."""
        before, self._graceful = self._graceful, True
        try:
            yield
        finally:
            self._graceful = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.by = not self.by, self.by or signal.Signals(number).name
        if number == signal.SIGUSR2:
            self.again = True
        if self._in_job and not first:
            return
        waits, self.asked = self._graceful and not self.asked, True
        if not waits:
            raise KeyboardInterrupt
