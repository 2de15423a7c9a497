"""The ledger: seconds go to one account at a time, and only two accounts are charged. The clock is a fake one."""

from __future__ import annotations

import pytest

from harness import ledger
from harness.ledger import ACCOUNTS, CHARGED, Ledger


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ledger, "time", clock)
    return clock


def test_the_outer_account_stands_still_while_the_inner_one_runs(clock: Clock) -> None:
    book = Ledger()
    with book.account("train"):
        clock.now += 2
        with book.account("checkpoint"):
            clock.now += 5
            with book.account("wait"):
                clock.now += 7
        clock.now += 1
    clock.now += 1000  # nothing is open
    with book.account("train"):
        clock.now += 4
    assert {n: s for n, s in book.snapshot().items() if s} == {"train": 7, "checkpoint": 5, "wait": 7}


def test_charged_seconds_count_the_open_account_up_to_now(clock: Clock) -> None:
    book = Ledger()
    with book.account("prepare"):
        clock.now += 3
    with book.account("train"):
        clock.now += 2
        assert book.charged_s() == 5
        with book.account("evaluate"):
            clock.now += 50
            assert book.charged_s() == 5
        clock.now += 1
        assert book.charged_s() == 6


def test_what_is_charged_is_training_and_its_preparation_alone(clock: Clock) -> None:
    book = Ledger()
    for name in ACCOUNTS:
        with book.account(name):
            clock.now += 1
    assert book.charged_s() == 2
    assert set(CHARGED) == {"prepare", "train"}
    assert sum(book.snapshot().values()) == len(ACCOUNTS) == 9


def test_an_account_closes_when_its_block_fails(clock: Clock) -> None:
    book = Ledger()
    with pytest.raises(ValueError, match="boom"), book.account("train"):
        clock.now += 2
        raise ValueError("boom")
    clock.now += 40
    assert book.charged_s() == 2


def test_time_from_an_earlier_attempt_is_added_and_a_snapshot_stays_as_it_was(clock: Clock) -> None:
    book = Ledger({"train": 10.0})
    book.add("lost", 4.0)
    before = book.snapshot()
    with book.account("train"):
        clock.now += 1
    assert (before["train"], before["lost"]) == (10, 4)
    assert book.snapshot()["train"] == 11


def test_an_unknown_account_is_refused_with_the_known_ones() -> None:
    book = Ledger()
    with pytest.raises(KeyError, match=r"no account 'training'.*prepare, train"), book.account("training"):
        pass


def test_time_outside_is_no_accounts_and_is_told(clock: Clock) -> None:
    book = Ledger()
    with book.account("evaluate"):
        clock.now += 1
        with book.outside() as shared:
            clock.now += 30
            with book.account("sample"):
                clock.now += 2
            clock.now += 4
        clock.now += 3
    assert {n: s for n, s in book.snapshot().items() if s} == {"evaluate": 4, "sample": 2}
    assert shared.seconds == 34


def test_outside_ends_when_its_block_fails(clock: Clock) -> None:
    book = Ledger()
    with book.account("evaluate"):
        with pytest.raises(ValueError, match="boom"), book.outside() as shared:
            clock.now += 5
            raise ValueError("boom")
        clock.now += 2
    assert (book.snapshot()["evaluate"], shared.seconds) == (2, 5)
