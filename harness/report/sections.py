"""Which rows may stand together: records sorted into trials, trials into sections of equal conditions.

A condition is what must agree for numbers to be comparable: device, data revision, an eval's protocol
version, the count of test images or samples (design.md, "Honest evaluation"). Trials that disagree go to two
sections.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from harness.budget import parse_budget
from harness.errors import HarnessError
from harness.records import Cell, Environment, EvalRecord, RunRecord
from harness.report.format import MISSING
from harness.train.settings import SIZES, UNKEYED

Kind = Literal["device", "data revision", "protocol", "n", "settings", "timed on"]
Conditions = dict[tuple[str, str], str]  # (what kind, of which) -> value
Records = dict[tuple[str, str], EvalRecord]  # (eval, data set) -> the newest full record


@dataclass
class Trial:
    """A run with everything that was evaluated of it."""

    run: RunRecord
    final: Records = field(default_factory=dict)
    untrained: Records = field(default_factory=dict)
    evals: list[EvalRecord] = field(default_factory=list)  # all of them, the cheap ones too

    @property
    def finished(self) -> bool:
        return self.run.state == "finished"

    @cached_property
    def settings(self) -> dict[str, object]:
        """Those of the run; every table asks for them, several times."""
        return settings(self.run)

    @cached_property
    def row(self) -> tuple[str, str]:
        """What it shares with the method's other seeds."""
        return self.run.cell.method, repr(self.settings)


@dataclass
class Group:
    """Trials under equal conditions."""

    dataset: str
    size: str
    budget: str
    conditions: Conditions
    trials: list[Trial]
    apart: list[str] = field(default_factory=list)  # conditions in which a sibling group differs

    @property
    def of(self) -> tuple[str, str, str]:
        return self.dataset, self.size, self.budget

    @property
    def heading(self) -> str:
        return " · ".join([*self.of, *self.apart])

    def methods(self) -> list[list[Trial]]:
        """Trials that differ in the seed only, in a fixed order."""
        found: dict[tuple[str, str], list[Trial]] = defaultdict(list)
        for trial in sorted(self.trials, key=lambda t: _order(t.run)):
            found[trial.row].append(trial)
        return [found[key] for key in sorted(found)]


def gather(runs: Iterable[RunRecord], evals: Iterable[EvalRecord]) -> tuple[list[Trial], list[EvalRecord], list[str]]:
    """Trials, reference records, and the keys of evals whose run is not among `runs`; each in fixed order."""
    trials = {run.key: Trial(run) for run in sorted(runs, key=_order)}
    references: dict[tuple[str, ...], EvalRecord] = {}
    strays = set()
    for record in sorted(evals, key=_age):  # a newer record takes the place of an older one
        place = (record.eval, record.dataset)
        if record.reference is not None:
            if not record.cheap:
                references[record.reference, *place, json.dumps(record.config, sort_keys=True)] = record
            continue
        if record.key not in trials:
            strays.add(record.key or "without a key")
            continue
        trial = trials[record.key]
        trial.evals.append(record)
        if not record.cheap and record.share in (0.0, 1.0):
            (trial.final if record.share else trial.untrained)[place] = record
    return list(trials.values()), [references[key] for key in sorted(references)], sorted(strays)


def split(trials: Iterable[Trial], conditions: Callable[[Trial], Conditions], mix: Collection[str] = ()) -> list[Group]:
    """Groups per data set, size and budget, and apart wherever the conditions of two trials disagree.

    Conditions of the kinds in `mix` part no trials, and are none of the group.
    """
    blocks: dict[tuple[str, str, str], list[Group]] = {}
    measured = {t.run.key: {k: v for k, v in conditions(t).items() if k[0] not in mix} for t in trials}
    # The trials that state most come first, so that one that states little (a crashed run) joins the others.
    for trial in sorted(trials, key=lambda t: (-len(measured[t.run.key]), _order(t.run))):
        cell, mine = trial.run.cell, measured[trial.run.key]
        place = (cell.dataset, cell.size, cell.budget)
        groups = blocks.setdefault(place, [])
        fitting = [g for g in groups if not differences(mine, g.conditions)]
        if len(fitting) > 1:  # beside the method's other seeds rather than apart from them
            fitting.sort(key=lambda g: all(t.run.cell.method != cell.method for t in g.trials))
        if not fitting:
            groups.append(Group(*place, {}, []))
            fitting = groups[-1:]
        fitting[0].conditions.update(mine)
        fitting[0].trials.append(trial)
    for groups in blocks.values():
        name_apart(groups)
    ordered = sorted(blocks, key=lambda place: (place[0], _size_rank(place[1]), _budget_rank(place[2])))
    return [group for place in ordered for group in sorted(blocks[place], key=lambda g: g.apart)]


def of_run(run: RunRecord) -> Conditions:
    found = {("data revision", run.cell.dataset): run.data_revision}
    if run.environment:
        found["device", ""] = device(run)
    return found


def of_eval(record: EvalRecord, table: str) -> Conditions:
    """The conditions of the record's numbers in that table; none when it has none there."""
    counts = {("n", number.title): str(number.n) for number in record.numbers.values() if number.table == table}
    if not counts:
        return {}
    own = {
        ("data revision", record.dataset): record.data_revision,
        ("protocol", record.eval): str(record.protocol),
        ("settings", record.eval): json.dumps(record.config, sort_keys=True),
    }
    if record.common is not None:
        own["protocol", "common"] = str(record.common)
    if table == "cost" and record.environment:  # what was timed rests on the machine that timed it
        own["timed on", record.eval] = _machine(record.environment)
    others = {("data revision", name): revision for name, revision in record.others.items()}
    return own | others | counts


def of_trial(trial: Trial, table: str) -> Conditions:
    """The conditions of the run, its final evals, its untrained ones; where they disagree the first counts."""
    found = of_run(trial.run)
    for record in [*trial.final.values(), *trial.untrained.values()]:
        found = of_eval(record, table) | found
    return found


def differences(mine: Mapping[tuple[str, str], str], theirs: Mapping[tuple[str, str], str]) -> list[tuple[str, str]]:
    return sorted(key for key in mine if theirs.get(key, mine[key]) != mine[key])


def describe(key: tuple[str, str], value: str) -> str:
    what, of = key
    if what == "n":
        return f"n {value} ({of})"
    if what == "data revision":
        return f"{of} {what} {value[:12]}"  # a digest; its head tells revisions apart
    if what == "settings":
        return f"{of} settings {value}"
    return value if what == "device" else f"{of} {what} {value}"


def device(run: RunRecord) -> str:
    return _machine(run.environment) if run.environment else ""


def _machine(env: Environment) -> str:
    return f"{env.devices} × {env.device}, {env.cpu_threads} CPU threads"


def settings(run: RunRecord) -> dict[str, object]:
    """What makes two runs of a method a different row: its config and training settings, but not the seed."""
    flat = {f"{run.cell.method}.{k}": v for k, v in run.config.items()}
    flat |= {f"train.{k}": v for k, v in run.train.items() if k not in UNKEYED}
    if run.released:  # other files are other rows, and so are other weights under one name
        flat |= {"file": run.released.file, "sha256": run.released.sha256[:12], "entry": run.released.entry}
    return {key: flat[key] for key in sorted(flat) if not key.endswith(".seed")}


def label(trial: Trial, group: Group, titles: Mapping[str, str]) -> str:
    """The method's title, and the settings in which it differs from its other rows of the group."""
    name, mine = trial.run.cell.method, trial.settings
    others = [t.settings for t in group.trials if t.run.cell.method == name]
    others = [other for other in others if other.get("file") == mine.get("file")]
    keys = sorted({key for other in others for key in other.keys() | mine.keys()})
    absent = object()
    differing = [key for key in keys if any(o.get(key, absent) != mine.get(key, absent) for o in others)]
    words = ", ".join(f"{key}={mine.get(key, MISSING)}" for key in differing)
    title = titles.get(name, name)
    if trial.run.released:
        title = f"{title}, released weights {trial.run.released.file}"
    return f"{title} ({words})" if words else title


def mark(run: RunRecord) -> str:
    """What is added to a run's name wherever its results stand, to set it apart from label-free ones."""
    return ", saw labels" if run.saw_labels else ""


def name_apart(groups: list[Group]) -> None:
    """Give each of the groups, which are of one place, the conditions in which others differ from it.

    No two have the same: a heading names its section, and what is kept by it.
    """
    keys = sorted({key for g in groups for h in groups for key in differences(g.conditions, h.conditions)})
    alike: Counter[tuple[str, ...]] = Counter()
    for group in groups:
        others = [g.conditions for g in groups]
        group.apart = [_apart(key, group.conditions[key], others) for key in keys if key in group.conditions]
        said = tuple(group.apart)
        alike[said] += 1
        group.apart += [f"({alike[said]})"] if alike[said] > 1 else []  # what is written alike, as 1 and "1"


def _apart(key: tuple[str, str], value: str, others: list[Conditions]) -> str:
    """What sets a group apart; of an eval's settings, only those in which the groups differ."""
    if key[0] != "settings":
        return describe(key, value)
    mine, all_ = json.loads(value), [json.loads(other[key]) for other in others if key in other]
    names = sorted({name for settings in all_ for name in settings})
    said = {name: {repr(settings.get(name, MISSING)) for settings in all_} for name in names}
    return f"{key[1]} " + ", ".join(f"{name}={mine.get(name, MISSING)}" for name in names if len(said[name]) > 1)


def _order(run: RunRecord) -> tuple[object, ...]:
    cell: Cell = run.cell
    return (cell.method, cell.dataset, _size_rank(cell.size), _budget_rank(cell.budget), cell.seed, run.key)


def _age(record: EvalRecord) -> tuple[object, ...]:
    opened = max((entry.at for entry in record.test_opened), default="")
    return (record.eval, record.protocol, opened, record.model_dump_json())


def _size_rank(size: str) -> tuple[int, str]:
    return (SIZES.index(size) if size in SIZES else len(SIZES), size)


def _budget_rank(text: str) -> tuple[str, float, str]:
    try:
        budget = parse_budget(text)
    except HarnessError:  # a record of a unit that this version does not know still has its place in a table
        return ("", 0.0, text)
    return (budget.reads, budget.limit, text)
