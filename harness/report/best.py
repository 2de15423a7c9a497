"""Which row of a column is the best, where that can be told from chance, and which places each row may have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.difference import Difference, difference, ranks
from harness.report.format import fixed
from harness.report.lines import SAW_LABELS, Line, Place

REMARK = (
    "Bold (on a terminal *): the best of its column, told apart from the next at 95 %; its note names the test. Where "
    "nothing is bold, the first two cannot be told apart, or the first does not beat what it must."
)


@dataclass(frozen=True)
class Best:
    """The first row of a column, the next, and how far it is ahead."""

    line: Line
    next: Line
    ahead: Difference

    def note(self, digits: int) -> str:
        gap, low, high = (fixed(value, digits) for value in self._sorted())
        return f"ahead of {self.next.label} by {gap} ({low} to {high}): {self.ahead.test}"

    def _sorted(self) -> tuple[float, float, float]:
        low, high = sorted((abs(self.ahead.low), abs(self.ahead.high)))
        return abs(self.ahead.mean), low, high


def rivals(lines: Sequence[Line], place: Place) -> list[Line]:
    """Finished methods with that number, the best first: what saw labels in pre-training is in no race with these.

    Nor is a method whose mean is no number: one of its seeds has none.
    """
    racing = [line for line in lines if line.kind == "method" and SAW_LABELS not in line.notes]
    found = [(mean, line) for line in racing if (mean := line.mean(place)) is not None and math.isfinite(mean)]
    higher = bool(found) and found[0][1].numbers(place)[0].better == "higher"
    return [line for _, line in sorted(found, key=lambda pair: -pair[0] if higher else pair[0])]


def best(lines: Sequence[Line], place: Place) -> Best | None:
    """The best row of the column; None where the first two cannot be told apart, or there is nothing to compare.

    Two methods are compared by the seeds that both have: those may put another one first than all seeds do.
    """
    order = rivals(lines, place)
    if len(order) < 2:
        return None
    found = difference(order[0].measured(place), order[1].measured(place))
    if found is None or not found.told:
        return None
    ahead = (found.mean > 0) == (order[0].numbers(place)[0].better == "higher")
    return Best(order[0], order[1], found) if ahead else None


def places(lines: Sequence[Line], place: Place) -> dict[str, tuple[int, int]]:
    """The places that each row of `rivals` may have, by its label; 1 is the best."""
    order = rivals(lines, place)
    if not order:
        return {}
    found = ranks([line.measured(place) for line in order], order[0].numbers(place)[0].better == "higher")
    return {line.label: interval for line, interval in zip(order, found, strict=True)}
