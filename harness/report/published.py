"""Published numbers beside measured ones, where the protocol is comparable; where it is not, refused with the reason.

A card states for each number either `apart`, why nothing here is measured like it, or what it would stand beside:
`data` and `px`, `number` (its key in our records), `n` (test images or samples), and `labels` where it saw some.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import HarnessError
from harness.plugins import card, method_plugins
from harness.records import Number
from harness.report.lines import SAW_LABELS, Line, Place


@dataclass(frozen=True)
class Published:
    """One number of a method's card."""

    model: str
    dataset: str
    metric: str
    value: float
    protocol: str
    source: str
    data: str = ""
    px: int = 0
    number: str = ""
    n: int = 0
    labels: bool = False
    apart: str = ""

    @property
    def table(self) -> str:
        """The table that it belongs to."""
        if self.metric in ("FID", "Inception score"):
            return "generation"
        return "finetune" if self.metric.startswith("fine-tune") else "representation"

    def why_not(self, dataset: str, px: int | None, measured: Mapping[str, Number]) -> str:
        """Why it does not stand beside numbers `measured` on that data set; "" where it does."""
        if self.apart:
            return self.apart
        if self.data != dataset:
            return f"on {self.dataset}, not {dataset}"
        if self.px != px:
            return f"at {self.px} px, not {px}"
        mine = measured.get(self.number)
        if mine is None:
            return f"{self.number} is not measured here"
        if self.n != mine.n:
            return f"of {self.n:,} test images or samples, not {mine.n:,}"
        if mine.table == "generation" and not mine.title.startswith(self.metric):
            return f"by {self.metric}, not {mine.title}"  # another network stands in for Inception
        return ""

    def line(self, title: str, place: Place) -> Line:
        notes = [
            f"published, not measured here: {self.protocol} ({self.source})",
            *([SAW_LABELS] if self.labels else []),
        ]
        return Line("published", f"{title}: {self.model}, published", notes=tuple(notes), stated={place: self.value})

    def refusal(self, title: str, why: str) -> str:
        return f"Not beside these: {title}, {self.model}, {self.metric} {self.value:g} ({self.source}): {why}."


def of_methods(names: Iterable[str]) -> dict[str, list[Published]]:
    """What the cards of these methods state; of a method that is not installed nothing is known.

    Raises HarnessError for a card whose entry does not fit.
    """
    installed = method_plugins()
    return {
        name: [_entry(name, entry) for entry in card(name).get("published", [])] for name in names if name in installed
    }


def _entry(method: str, entry: dict[str, Any]) -> Published:
    try:
        found = Published(**entry)
    except TypeError as error:
        raise HarnessError(
            f"the card of {method}: published: {error}", "the keys of harness/report/published.py"
        ) from None
    if not found.apart and not (found.data and found.px and found.number and found.n):
        raise HarnessError(
            f"the card of {method}: {found.model}, {found.metric} does not say what it is comparable with",
            "data, px, number and n; or apart, with the reason",
        )
    return found
