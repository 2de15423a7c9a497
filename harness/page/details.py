"""What a cell of the page says of the records that it was read from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.records import Environment, EvalRecord, RunRecord
from harness.report import format as fmt
from harness.store import Study

Facts = Iterator[tuple[str, str]]


def place(record: EvalRecord | RunRecord) -> str:
    """Where the record lies in its study's folder."""
    study = Study(Path())
    if isinstance(record, RunRecord):
        return study.run(record.key).record.as_posix()
    return (study.holding(record) / f"{record.eval}.json").as_posix()


def title(record: EvalRecord | RunRecord) -> str:
    if isinstance(record, RunRecord):
        return f"{record.cell.method}, seed {record.cell.seed}: the run"
    if record.cell is None:
        return f"{record.reference}: {record.eval}"
    which = "" if record.share else ", untrained"
    return f"{record.cell.method}{which}, seed {record.cell.seed}: {record.eval}"


def facts(record: EvalRecord | RunRecord) -> list[tuple[str, str]]:
    """Names and values, in the order that a reader asks for them; nothing for what is not known."""
    found = _of_run(record) if isinstance(record, RunRecord) else _of_eval(record)
    return [(name, text) for name, text in found if text]


def _of_eval(record: EvalRecord) -> Facts:
    for number in record.numbers.values():
        spread = "" if number.half is None else f" ± {number.half:.3g} over {len(number.values)} repeats"
        said = f"{number.value:.6g}{spread}; n = {number.n:,}" + (f"; {number.note}" if number.note else "")
        yield f"{number.title} ({number.better} is better)", said
    yield "run", record.key or ""
    yield "read from", record.shared or ""
    yield "share of the budget", "" if record.share is None else f"{record.share:g}"
    yield "weights", "" if record.weights == "none" else record.weights
    yield "protocol", f"{record.eval} {record.protocol}" + (f", common {record.common}" if record.common else "")
    yield "chosen", _flat({k: v for k, v in record.chosen.items() if isinstance(v, str | int | float | bool)})
    yield "candidates tried", str(record.trials)
    yield "test part opened", "; ".join(f"{opened.at} by {opened.by}" for opened in record.test_opened)
    yield "data", f"{record.dataset}, revision {record.data_revision}"
    yield "other data", _flat(record.others)
    yield "settings", _flat(record.config)
    yield "seconds", _flat({name: f"{seconds:.1f}" for name, seconds in record.ledger.items() if seconds})
    yield from _where(record.environment)
    yield "notes", "; ".join(record.notes)


def _of_run(record: RunRecord) -> Facts:
    spend, cost = record.spend, record.cost
    yield "run", record.key
    yield "state", record.state + (f": {record.message}" if record.message else "")
    yield "attempts", str(record.attempts)
    yield "read from", record.shared or ""
    yield "spent", f"{100 * spend.share:.2f} % of {record.cell.budget}: {spend.device_s:.1f} s of device time"
    yield "meter", f"{spend.step:,.0f} steps, {spend.img:,.0f} images, {fmt.count(spend.flop)}FLOP"
    yield "seconds", _flat({name: f"{seconds:.1f}" for name, seconds in record.ledger.items() if seconds})
    if cost:
        yield "parameters", f"{cost.parameters:,} trained, {cost.parameters_features:,} behind features"
        yield "pace", "" if cost.img_s is None else f"{cost.img_s:.4g} images/s"
    yield "final loss", "" if record.final_loss is None else f"{record.final_loss:.6g}"
    yield "borrowed", "; ".join(loan.what for loan in record.borrowed)
    yield "released weights", f"{record.released.file} {record.released.sha256}" if record.released else ""
    yield "data", f"{record.cell.dataset}, revision {record.data_revision}"
    yield "method's settings", _flat(record.config)
    yield "training settings", _flat(record.train)
    yield from _where(record.environment)
    yield "notes", "; ".join(record.notes)


def _where(env: Environment | None) -> Facts:
    if env:
        yield "device", f"{env.devices} × {env.device}, {env.cpu_threads} CPU threads, {env.precision}"
        yield "versions", _flat(env.versions)
        yield "commit", env.commit or ""


def _flat(values: Mapping[str, Any]) -> str:
    """a = 1, b.c = 2: nested mappings by their path."""
    return ", ".join(f"{name} = {text}" for name, text in _leaves(values, ""))


def _leaves(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
