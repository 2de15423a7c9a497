"""How the records of two studies differ: matched by key, runs also by cell, and compared field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.errors import HarnessError
from harness.hits import share
from harness.records import EvalRecord, RunRecord
from harness.report.sides import Side
from harness.train.settings import UNKEYED

Record = RunRecord | EvalRecord
Path = tuple[str, ...]
ABSENT = "absent"  # what stands for a field that one side lacks; a null is a value


@dataclass(frozen=True)
class Change:
    """A field that differs: its path in the record and both values, ABSENT where a side has no such field."""

    path: Path
    old: Any
    new: Any

    @property
    def field(self) -> str:
        return ".".join(self.path)

    @property
    def cause(self) -> str:
        """What it is counted under: a number's field, a setting, an account; the meters of all snapshots are one."""
        if self.path[0] == "snapshots":
            return "snapshots"
        return ".".join(self.path[: 3 if self.path[0] == "numbers" else 2])


@dataclass(frozen=True)
class Differing:
    """A record of both sides, or of one: `how` it differs, and in which fields."""

    name: str
    how: Literal["new", "gone", "differs"]
    old: Record | None
    new: Record | None
    changes: tuple[Change, ...] = ()
    keys: tuple[str, str] | None = None  # of a run whose key changed with its settings


def compare(a: Side, b: Side) -> tuple[list[Differing], Side]:
    """The records that differ, in fixed order; and B with the keys that A has for the same cells."""
    pairs = _pairs(a.runs, b.runs)
    renamed = {new: old for old, new in pairs.items() if old != new}
    b = _renamed(b, renamed)
    back = {old: new for new, old in renamed.items()}
    before, after = _by_place(a), _by_place(b)
    found = [Differing(name, "gone", before[place], None) for place, name in _names(before) if place not in after]
    found += [Differing(name, "new", None, after[place]) for place, name in _names(after) if place not in before]
    for place, name in _names(before):
        old, new = before[place], after.get(place)
        changes = () if new is None or old == new else tuple(_of_records(old, new))
        if changes:
            found.append(Differing(name, "differs", old, new, changes))
    return [_keyed(one, back) for one in found] + _rekeyed(before, after, back), b


def _keyed(one: Differing, back: Mapping[str, str]) -> Differing:
    if isinstance(one.old, RunRecord) and one.old.key in back and one.new:
        return Differing(one.name, one.how, one.old, one.new, one.changes, (one.old.key, back[one.old.key]))
    return one


def _rekeyed(before: Mapping, after: Mapping, back: Mapping[str, str]) -> list[Differing]:
    """Runs that differ in nothing but their key: the harness that made it counted something else."""
    same = [("run", key) for key in back if before["run", key] == after["run", key]]
    return [Differing(names(before[p]), "differs", before[p], after[p], (), (p[1], back[p[1]])) for p in sorted(same)]


# -- matching ---------------------------------------------------------------------------------------------------


def _pairs(old: Sequence[RunRecord], new: Sequence[RunRecord]) -> dict[str, str]:
    """A's key -> B's key: the same key, or else the same cell, of several that with the fewest settings changed."""
    pairs = {run.key: run.key for run in old if run.key in {other.key for other in new}}
    left = sorted((run for run in new if run.key not in pairs), key=lambda run: run.key)
    for run in sorted((run for run in old if run.key not in pairs), key=lambda run: run.key):
        fitting = [other for other in left if other.cell == run.cell]
        if fitting:
            nearest = min(fitting, key=lambda other: len(list(settings(run, other))))
            pairs[run.key] = nearest.key
            left.remove(nearest)
    return pairs


def settings(old: RunRecord, new: RunRecord) -> Iterator[Change]:
    """Of what a key is made from, what differs."""
    for change in _of_records(old, new):
        head = change.path[0]
        watched = head == "train" and change.path[-1] in UNKEYED
        if head in ("config", "train", "data_revision", "released") and not watched:
            yield change


def _renamed(side: Side, renamed: Mapping[str, str]) -> Side:
    if not renamed:
        return side

    def under(record: Any) -> Any:
        keys = {name: renamed.get(getattr(record, name), getattr(record, name)) for name in ("key", "shared")}
        return record.model_copy(update=keys)

    return Side(side.name, side.request, [*map(under, side.runs)], [*map(under, side.evals)])


def _by_place(side: Side) -> dict[tuple, Record]:
    """Records by what they are of. Two of one place would be two files of one name."""
    found: dict[tuple, Record] = {("run", run.key): run for run in side.runs}
    for record in side.evals:
        whose = record.key or f"{record.reference} {record.size}"
        found["eval", whose, record.dataset, record.eval, record.share, record.cheap] = record
    return found


def _names(records: Mapping[tuple, Record]) -> list[tuple[tuple, str]]:
    """Places with their names: runs first, references last."""
    return sorted(((place, names(record)) for place, record in records.items()), key=lambda p: (p[0][0] != "run", p[1]))


def names(record: Record) -> str:
    """A record as a person calls it."""
    cell = record.cell
    where = f"{cell.method} {cell.dataset} {cell.size} {cell.budget} seed {cell.seed}" if cell else ""
    if isinstance(record, RunRecord):
        return f"run of {where}"
    if record.reference is not None:
        size = f", {record.size}" if record.size else ""
        return f"{record.eval} of {record.reference}, {record.dataset}{size}"
    on = f" on {record.dataset}" if cell and record.dataset != cell.dataset else ""
    return f"{'quick ' if record.cheap else ''}{record.eval} of {where} at {record.share:g}{on}"


# -- fields -----------------------------------------------------------------------------------------------------


def _of_records(old: Record, new: Record) -> Iterator[Change]:
    return _changes(old.model_dump(mode="json"), new.model_dump(mode="json"))


def _changes(old: Any, new: Any, path: Path = ()) -> Iterator[Change]:
    """Every field that differs. Lists are values; a mapping that one side lacks is one change."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new and not (old != old and new != new):  # one NaN is like another
            yield Change(path, old, new)
        return
    for name in [*old, *(name for name in new if name not in old)]:
        yield from _changes(old.get(name, ABSENT), new.get(name, ABSENT), (*path, name))


def asked(old: Mapping[str, object], new: Mapping[str, object]) -> list[Change]:
    """What the studies ask for, where it differs."""
    return list(_changes(dict(old), dict(new)))


def applied(record: Record, changes: Sequence[Change]) -> Record:
    """The record with the new values of those fields alone."""
    fields = record.model_dump(mode="json")
    for change in changes:
        inner = fields
        for name in change.path[:-1]:
            inner = inner[name]
        if change.new == ABSENT:
            inner.pop(change.path[-1], None)
        else:
            inner[change.path[-1]] = change.new
    return type(record).model_validate(fields)


def guesses(record: EvalRecord, change: Change) -> str:
    """In words, how many test images were guessed otherwise, for two values of `hits`."""
    n = record.numbers[change.path[1]].n
    try:
        otherwise = int((share(str(change.old), n) != share(str(change.new), n)).sum())
    except (HarnessError, ValueError):
        return "of other images or repeats"
    return f"{otherwise:,} of {n:,} images"
