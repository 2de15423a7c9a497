"""Running one eval on one checkpoint, into the record that tables are made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness.config import plain
from harness.errors import HarnessError
from harness.method import Method
from harness.plugins import load_eval
from harness.protocol import COMMON
from harness.records import Cell, Environment, EvalRecord, Number
from harness.stats import mean_interval

if TYPE_CHECKING:
    from harness.evaluation.context import Context


@dataclass(frozen=True)
class Outcome:
    """What an eval found."""

    numbers: dict[str, Number]
    chosen: dict[str, Any] = field(default_factory=dict)  # what was selected, on the select part
    trials: int = 1  # how many candidates it was selected from
    pictures: list[str] = field(default_factory=list)  # files in the context's folder of pictures
    notes: list[str] = field(default_factory=list)


def measured(values: Sequence[float], **about: Any) -> Number:
    """The Number of an eval's results, one for each of its own seeds: their mean, and its 95 % interval.

    `about` is the rest of a Number. An eval in which nothing is random gives one value.
    """
    mean, half = mean_interval(values)
    return Number(value=mean, values=list(values), half=half, **about)


@dataclass(frozen=True)
class Subject:
    """Whose numbers they are: a snapshot of a run, or a reference row."""

    cell: Cell | None = None
    key: str | None = None
    reference: str | None = None
    share: float | None = None
    weights: Literal["ema", "raw", "none"] = "none"
    snapshot: str | None = None
    size: str | None = None  # of a reference row

    @property
    def who(self) -> str:
        """The name under which the test split is opened."""
        if self.cell is None:
            return self.reference or self.key or "an unnamed checkpoint"
        c = self.cell
        share = "" if self.share is None else f" at {self.share:g} of the budget"
        return f"{c.method} {c.size} on {c.dataset}, {c.budget}, seed {c.seed}{share}"


def can(method: Method | type[Method], verb: str) -> bool:
    """Whether a method has the verb an eval needs: "features", "sample" or "labelled"."""
    kind = method if isinstance(method, type) else type(method)
    return getattr(kind, verb) is not getattr(Method, verb)


def verbs(method: type[Method]) -> frozenset[str]:
    """All of the interface's names that `can` is true of."""
    return frozenset(name for name in dir(Method) if not name.startswith("_") and can(method, name))


def evaluate(
    name: str, context: Context, config: Any, *, subject: Subject, environment: Environment | None = None
) -> EvalRecord | None:
    """Run the eval `name`; None where the method lacks the verb it needs, or the eval does not run on snapshots.

    The record's ledger is what this eval spent: features that an earlier eval extracted cost nothing here.
    """
    plugin = load_eval(name)
    if not can(context.method, plugin.NEEDS):
        return None
    before = context.ledger.snapshot()
    context.begin(f"{name} of {subject.who}")
    with context.ledger.account("evaluate"):
        outcome = plugin.evaluate(context, config)
    if outcome is None:
        return None
    _require_finite(name, outcome)
    after = context.ledger.snapshot()
    # Of the run's own data set, read as another, the looks are in the first list already.
    read = [other for other in context.others() if other.looks() and other.data is not context.data]
    return EvalRecord(
        eval=name,
        protocol=plugin.PROTOCOL,
        common=COMMON.version,
        dataset=context.data.spec.name,
        data_revision=context.data.revision,
        others={other.data.spec.name: other.data.revision for other in read},
        key=subject.key,
        cell=subject.cell,
        reference=subject.reference,
        size=subject.size,
        share=subject.share,
        cheap=context.cheap,
        weights=subject.weights,
        snapshot=subject.snapshot,
        config=plain(config),
        seed=context.rng.seed,
        numbers=outcome.numbers,
        chosen=outcome.chosen,
        trials=outcome.trials,
        test_opened=context.looks() + [look for other in read for look in other.looks()],
        pictures=outcome.pictures,
        ledger={a: round(after[a] - before[a], 3) for a in ("select", "evaluate", "sample")},
        notes=outcome.notes,
        environment=environment,
    )


def _require_finite(name: str, outcome: Outcome) -> None:
    for key, number in outcome.numbers.items():
        if not math.isfinite(number.value):
            raise HarnessError(f"the eval {name!r} gave {key} = {number.value}", "a finite number")
