"""The ledger: a run's seconds split into named accounts, kept by one clock.

`prepare` and `train` are charged to the budget; the rest is never charged and always shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

CHARGED = ("prepare", "train")
SHOWN = ("compile", "checkpoint", "select", "evaluate", "sample", "lost", "wait")
ACCOUNTS = CHARGED + SHOWN


@dataclass
class Aside:
    """Time that is booked to no account."""

    seconds: float = 0.0


class Ledger:
    """Seconds per account. Accounts nest: the inner one runs while the outer one stands still."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = dict.fromkeys(ACCOUNTS, 0.0) | (seconds or {})
        self._open: list[str | Aside] = []
        self._since = 0.0

    @contextmanager
    def account(self, name: str) -> Iterator[None]:
        """Book the time of the `with` block to `name`."""
        if name not in self.seconds:
            raise KeyError(f"no account {name!r}; the accounts are {', '.join(ACCOUNTS)}")
        self._book()
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    @contextmanager
    def outside(self) -> Iterator[Aside]:
        """Book the time of the `with` block to no account: what many cells share is no one's own.

        What is yielded holds its seconds once the block is over; accounts opened inside keep theirs.
        """
        aside = Aside()
        self._book()
        self._open.append(aside)
        try:
            yield aside
        finally:
            self._book()
            self._open.pop()

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] += seconds

    def charged_s(self) -> float:
        """Seconds charged to the budget up to now, the open account included."""
        self._book()
        return sum(self.seconds[name] for name in CHARGED)

    def snapshot(self) -> dict[str, float]:
        self._book()
        return dict(self.seconds)

    def _book(self) -> None:
        now = time.perf_counter()
        if self._open:
            at, passed = self._open[-1], now - self._since
            if isinstance(at, Aside):
                at.seconds += passed
            else:
                self.seconds[at] += passed
        self._since = now
