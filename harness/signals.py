"""Ctrl-C and SIGTERM: a run in training saves itself first; anything else stops at once and leaves nothing half."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopper:
    """Turns the first signal into a wish that training honours at its next step; a second one is not asked twice."""

    def __init__(self) -> None:
        self.asked = False
        self._graceful = False

    @contextmanager
    def installed(self) -> Iterator[Stopper]:
        before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def graceful(self) -> Iterator[None]:
        """While this is open, one signal only sets `asked`."""
        self._graceful = True
        try:
            yield
        finally:
            self._graceful = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._graceful and not self.asked:
            self.asked = True
            return
        raise KeyboardInterrupt
