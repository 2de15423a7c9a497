"""The wall-clock table: what each method cost, on every account, and what its network is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from harness.ledger import ACCOUNTS, CHARGED
from harness.records import Borrowed, Cost, EvalRecord, RunRecord
from harness.report import format as fmt
from harness.report.layout import Cell, Column, Kind, Row, Section, hoist_notes
from harness.report.lines import FLOOR, notes, seeds_text, state
from harness.report.sections import Group, Trial, describe, label, mark, of_run, split
from harness.stats import mean


@dataclass(frozen=True)
class Line:
    """A row before it has a form: the runs behind it (none for a reference) and one ledger per seed."""

    kind: Kind
    label: str
    seeds: str
    ledgers: list[dict[str, float]]
    runs: tuple[RunRecord, ...] = ()
    notes: tuple[str, ...] = ()
    state: str = fmt.MISSING
    trials: str = fmt.MISSING


Make = Callable[[Line], Cell]
T = TypeVar("T")


def sections(
    trials: Sequence[Trial], references: Sequence[EvalRecord], titles: Mapping[str, str]
) -> tuple[Section, ...]:
    groups = split(trials, lambda trial: of_run(trial.run))
    return tuple(_section(group, references, titles) for group in groups)


def _section(group: Group, references: Sequence[EvalRecord], titles: Mapping[str, str]) -> Section:
    lines = [line for trials in group.methods() for line in _of_method(trials, group, titles)]
    lines.sort(key=lambda line: line.kind == "untrained")  # what has most to say comes first
    lines += _of_references(group, references)
    made: list[tuple[Column, Make]] = [
        (Column("method", numeric=False), lambda line: Cell(line.label, notes=line.notes)),
        (Column("seeds"), lambda line: Cell(line.seeds)),
        (Column("state", numeric=False), lambda line: Cell(line.state)),
        (Column("budget"), lambda line: Cell(group.budget) if line.runs else Cell()),
        (Column("spent of budget, %"), _spent),
        *_accounts(lines),
        *_measures(lines),
        (
            Column("precision", numeric=False),
            _same(lambda run: run.environment and run.environment.precision),
        ),
        (Column("borrowed", numeric=False), _borrowed),
        (Column("tuning trials"), lambda line: Cell(line.trials)),
    ]
    rows = tuple(Row(line.kind, tuple(_from(line, make(line)) for _, make in made)) for line in lines)
    conditions = "; ".join(describe(key, value) for key, value in sorted(group.conditions.items()))
    return hoist_notes(Section(group.heading, conditions, tuple(column for column, _ in made), rows, of=group.of))


def _from(line: Line, cell: Cell) -> Cell:
    return cell if cell.text == fmt.MISSING else replace(cell, records=line.runs)


def _of_method(trials: list[Trial], group: Group, titles: Mapping[str, str]) -> list[Line]:
    name = label(trials[0], group, titles)
    done = [trial for trial in trials if trial.finished]
    lines = []
    if done:
        lines.append(_line("method", name + mark(done[0].run), seeds_text(done, trials), done, notes(done), "finished"))
    untrained = [[r for r in t.evals if r.share == 0] for t in trials]
    ledgers = [_sum(r.ledger for r in records) for records in untrained if records]
    if ledgers:
        lines.append(Line("untrained", f"{name}, untrained", str(len(ledgers)), ledgers))
    for trial in trials:
        if not trial.finished:
            said = (trial.run.message,) if trial.run.message else ()
            title = f"{name}{mark(trial.run)}, seed {trial.run.cell.seed}"
            lines.append(_line("unfinished", title, fmt.MISSING, [trial], said, state(trial)))
    return lines


def _line(kind: Kind, name: str, seeds: str, trials: list[Trial], said: tuple[str, ...], how: str) -> Line:
    ledgers = [_sum([t.run.ledger, *(r.ledger for r in t.evals if r.share != 0)]) for t in trials]
    tuning = {str(sum(record.trials for record in t.final.values())) for t in trials if t.final}
    return Line(
        kind, name, seeds, ledgers, tuple(t.run for t in trials), said, how, ", ".join(sorted(tuning)) or fmt.MISSING
    )


def _of_references(group: Group, references: Sequence[EvalRecord]) -> list[Line]:
    """The references' seconds, where they were measured on the section's own device and data."""
    found: dict[str, list[dict[str, float]]] = {}
    for record in references:
        here = record.dataset == group.dataset
        here &= record.data_revision == group.conditions.get(("data revision", group.dataset))
        env = record.environment
        if env:
            where = f"{env.devices} × {env.device}, {env.cpu_threads} CPU threads"
            here &= where == group.conditions.get(("device", ""), where)
        if here and record.ledger:
            found.setdefault(record.reference or "", []).append(record.ledger)
    names = sorted(found, key=lambda name: (name != FLOOR, name))
    return [Line("reference", name, fmt.MISSING, [_sum(found[name])]) for name in names]


def _sum(ledgers: Iterable[Mapping[str, float]]) -> dict[str, float]:
    parts: dict[str, list[float]] = {}
    for ledger in ledgers:
        for name, seconds in ledger.items():
            parts.setdefault(name, []).append(seconds)
    return {name: _exact(seconds) for name, seconds in parts.items()}


def _exact(values: Sequence[float]) -> float:
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of what was measured, or None."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _accounts(lines: Sequence[Line]) -> list[tuple[Column, Make]]:
    others = sorted({name for line in lines for ledger in line.ledgers for name in ledger} - set(ACCOUNTS))
    return [_account(name, lines) for name in (*ACCOUNTS, *others)]


def _account(name: str, lines: Sequence[Line]) -> tuple[Column, Make]:
    def mean(line: Line) -> float | None:
        return _mean(ledger.get(name) for ledger in line.ledgers)

    unit = fmt.time_unit(seconds for line in lines if (seconds := mean(line)) is not None)
    charged = " (charged)" if name in CHARGED else ""

    def make(line: Line) -> Cell:
        seconds = mean(line)
        return Cell() if seconds is None else Cell(fmt.duration(seconds, unit), f"{seconds:.6g}")

    return (Column(f"{name}{charged}, {unit}", f"{name} s"), make)


def _spent(line: Line) -> Cell:
    """The share of the budget, lowest to highest where the seeds differ: a mean could hide an overspend.

    A run that has booked nothing yet has no meter to read: that is missing, not 0.
    """
    shares = [100 * run.spend.share for run in line.runs if run.ledger]
    texts = [fmt.fixed(share, 1) for share in sorted(shares)]
    return Cell("–".join(dict.fromkeys([texts[0], texts[-1]]))) if texts else Cell()


_BETTER = {"img/s": "higher", "MFU, %": "higher"}  # the rest costs something, or is no merit


def _measures(lines: Sequence[Line]) -> list[tuple[Column, Make]]:
    """What was measured of the network and its pace; fields that few devices report, where one did."""
    always = [
        ("parameters trained", "", lambda c: c.parameters, fmt.count),
        ("parameters behind features", "", lambda c: c.parameters_features, fmt.count),
        ("parameters frozen", "", lambda c: c.parameters_frozen, fmt.count),
        ("training, GFLOP/img", "training FLOP/img", lambda c: c.flop_train_img, fmt.gflop),
        ("features, GFLOP/img", "features FLOP/img", lambda c: c.flop_features_img, fmt.gflop),
        ("img/s", "", lambda c: c.img_s, fmt.significant),
        ("peak memory", "peak memory bytes", lambda c: c.peak_memory_bytes, fmt.memory),
        ("outside the step, %", "outside share", lambda c: c.outside_share, _percent),
    ]
    reported = [
        ("MFU, %", "MFU", lambda c: c.mfu, _percent, _peak),
        ("energy, kJ", "energy J", lambda c: c.energy_j, lambda joule: fmt.significant(joule / 1e3), _counters),
    ]
    costs = [run.cost for line in lines for run in line.runs if run.cost]
    chosen = [(*entry, lambda c: None) for entry in always]
    chosen += [entry for entry in reported if any(entry[2](cost) is not None for cost in costs)]
    made = [
        (Column(title, plain or None, better=_BETTER.get(title, "")), _measure(_of_cost(get), show, _of_cost(said)))
        for title, plain, get, show, said in chosen
    ]
    seen = (Column("images seen"), _measure(lambda run: run.spend.img if run.ledger else None, fmt.count))
    return [*made[:6], seen, *made[6:]]


def _peak(cost: Cost) -> str | None:
    """What the MFU is a share of."""
    return cost.peak_flop_s and f"of a peak of {fmt.count(cost.peak_flop_s)}FLOP/s"


def _counters(cost: Cost) -> str | None:
    return cost.energy_source and f"of the charged time, idle draw included: {cost.energy_source}"


def _percent(share: float) -> str:
    return fmt.fixed(100 * share, 1)


def _of_cost(get: Callable[[Cost], T]) -> Callable[[RunRecord], T | None]:
    return lambda run: get(run.cost) if run.cost else None


def _measure(
    get: Callable[[RunRecord], float | None],
    show: Callable[[float], str],
    said: Callable[[RunRecord], str | None] = lambda run: None,
) -> Make:
    """Means over the runs in which it was measured; `said` of those is noted."""

    def make(line: Line) -> Cell:
        known = [run for run in line.runs if get(run) is not None]
        mean = _mean(map(get, known))
        notes = tuple(sorted({text for run in known if (text := said(run))}))
        return Cell() if mean is None else Cell(show(mean), f"{mean:.10g}", notes=notes)

    return make


def _same(get: Callable[[RunRecord], str | None]) -> Make:
    """A column of words: each that occurs, once."""
    return lambda line: Cell(", ".join(sorted({text for run in line.runs if (text := get(run))})) or fmt.MISSING)


def _borrowed(line: Line) -> Cell:
    """What the method starts from; its size and price, as far as known, in a note."""
    if not line.runs:
        return Cell()
    loans = {loan.what: loan for run in line.runs for loan in run.borrowed}
    said = tuple(_loan(loans[what]) for what in sorted(loans))
    return Cell(", ".join(sorted(loans)) or "none", notes=said)


def _loan(loan: Borrowed) -> str:
    size = "size unknown" if loan.parameters is None else f"{fmt.count(loan.parameters)} parameters"
    return f"borrowed: {loan.what}, {size}; its cost elsewhere: {loan.cost or 'not stated'}"
