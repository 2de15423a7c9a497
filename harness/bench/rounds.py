"""Interleaved rounds and what is said of them: medians, ranges, ratios; and the clock of a step's parts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Spread(NamedTuple):
    """What several rounds of one measurement came to."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, form: str = ",.0f") -> str:
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"


def interleave(sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each side returned in each round, A B A B ...: a slow minute of the machine slows all of them."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            found[name].append(measure())
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The ratio round by round, so that what both sides of a round suffered cancels."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def timed(work: Callable[[], Any]) -> float:
    """Wall seconds of calling `work`."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Parts:
    """Seconds inside named parts of a step. `wrap` books a function's calls; `settle` waits for the device first."""

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        self.seconds: dict[str, float] = {}
        self._settle = settle

    def wrap(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def booked(*args: Any, **kwargs: Any) -> Any:
            self._settle()
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self._settle()
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

        return booked


@contextmanager
def patched(owner: Any, name: str, stand_in: Any) -> Iterator[None]:
    """`owner.name` replaced for a while."""
    kept = getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, kept)
