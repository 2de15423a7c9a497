"""Data of another kind than labelled images: what an eval that reads them leaves in its record."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from harness import records
from harness.errors import HarnessError
from harness.evaluation import Outcome, Subject, evaluate
from harness.evaluation import record as record_module
from harness.records import Number
from tests.evals.kit import context

WHO = Subject(reference="toy")
NUMBER = Number(value=1.0, title="toy", table="dense", better="higher", n=1)


@dataclass
class Shapes:
    """Some data with a door."""

    revision: str = "feed"
    spec: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(name="shapes"))
    opened: list[records.TestOpened] = field(default_factory=list)

    def open_test(self, by: str) -> str:
        self.opened.append(records.TestOpened(by=by, at="2026-01-01T00:00:00+00:00"))
        return "the test part"


def run(where, found, monkeypatch):
    plugin = SimpleNamespace(NEEDS="features", PROTOCOL=7, evaluate=lambda context, config: found(context))
    monkeypatch.setattr(record_module, "load_eval", lambda name: plugin)
    return evaluate("shapely", where, WHO, subject=WHO)


def test_the_record_names_the_revision_and_every_look(tmp_path, monkeypatch):
    shapes, where = Shapes(), context(tmp_path)

    def reads(context):
        assert context.borrow(shapes).open_test() == "the test part"
        return Outcome({"x": NUMBER})

    for _ in range(2):  # each record has its own look
        record = run(where, reads, monkeypatch)
        assert record.others == {"shapes": "feed"}
        assert [look.by for look in record.test_opened] == ["shapely of toy"]
    assert len(shapes.opened) == 2


def test_what_was_borrowed_and_not_tested_is_in_no_record(tmp_path, monkeypatch):
    shapes, where = Shapes(), context(tmp_path)
    run(where, lambda context: Outcome({"x": NUMBER}) if context.borrow(shapes).open_test() else None, monkeypatch)
    record = run(where, lambda context: Outcome({"x": NUMBER}), monkeypatch)
    assert record.others == {} and record.test_opened == []


def test_nothing_is_chosen_after_a_borrowed_test_part_was_opened(tmp_path, monkeypatch):
    where = context(tmp_path)

    def peeks(context):
        context.borrow(Shapes()).open_test()
        with context.choosing():
            pass

    with pytest.raises(HarnessError, match="shapely of toy: a choice after the test split was opened"):
        run(where, peeks, monkeypatch)
