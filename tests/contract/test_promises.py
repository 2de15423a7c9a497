"""Every promise can be broken: a toy breaks each, and is told what was found and what to change."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from harness.contract.promises import PROMISES, Outcome, check
from harness.contract.subject import Subject
from harness.data.arrays import digits_file
from tests.contract import broken
from tests.contract.broken import CARD, CASES, Case, DrawsGlobally, ReadsNumbers, Sound, card_of


@pytest.fixture
def outcome(digits, tmp_path):
    """`outcome("loss", Toy, card)`: the check of a toy whose folder is that of broken.py."""
    (tmp_path / "README.md").touch()

    def checked(promise: str, cls: type, card: dict) -> Outcome:
        place = tmp_path if promise == "card" else Path(__file__).parent
        return check(PROMISES[promise], Subject("sound", cls, card, place, digits, tmp_path, closed=(digits_file(),)))

    return checked


@pytest.mark.parametrize("promise", PROMISES)
def test_a_sound_method_keeps_it(outcome, promise):
    found = outcome(promise, Sound, CARD)
    assert found.state == "kept" and found.found, (found.found, found.change)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_broken_method_is_told_what_to_change(outcome, case: Case):
    found = outcome(case.promise, case.cls, card_of(case))
    assert found.state == "broken", found.found
    assert case.found in found.found
    assert case.change in found.change


def test_the_cost_of_a_method_that_reads_numbers_is_counted_by_running_it(outcome):
    found = outcome("cost", ReadsNumbers, CARD)
    assert found.state == "kept" and found.found.startswith("883 parameters, 1.77 MFLOP forward"), found.found
    wrong = CARD | {"cost": {"nano": CARD["cost"]["nano"] | {"forward_flop": 1_000_000}}}
    assert outcome("cost", ReadsNumbers, wrong).state == "broken"


def test_a_yardstick_that_cannot_be_counted_is_said_and_is_no_fault_of_the_method(outcome, monkeypatch):
    def fails(*_):
        raise RuntimeError("half written")

    monkeypatch.setattr("harness.sizes.measure", fails)
    found = outcome("cost", Sound, CARD)
    assert found.state == "kept"
    assert found.found.endswith("forward; its yardstick mae cannot be counted: RuntimeError: half written")


def test_the_line_that_draws_is_named_not_the_one_before_or_after(outcome):
    found = outcome("global-rng", DrawsGlobally, CARD).found
    (line,) = [i for i, text in enumerate(Path(broken.__file__).read_text().splitlines(), 1) if "torch.randn(b" in text]
    assert found.endswith(f"(broken.py:{line}, in pretrain)")


def test_the_lines_of_all_sizes_are_there_to_be_pasted(outcome):
    change = outcome("cost", Sound, CARD | {"cost": {}}).change
    assert tomllib.loads(change.partition("\n")[2])["ti"]["parameters"] == 1763


def test_no_promise_is_without_a_toy_that_breaks_it():
    assert {case.promise for case in CASES} == set(PROMISES)


def test_what_another_check_met_of_the_network_is_told_by_its_own(digits, tmp_path):
    """A method may ask in a place that the network's own check does not come to."""
    subject = Subject(
        "sound", Sound, CARD, None, digits, tmp_path, reached_out=["a connection to 192.0.2.1 (method.py:3)"]
    )
    assert "192.0.2.1" in check(PROMISES["network"], subject).found


def test_doors_are_open_again_afterwards(outcome, digits):
    import socket

    outcome("test-split", Sound, CARD), outcome("network", Sound, CARD)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unconnected:
        unconnected.connect(("127.0.0.1", 9))  # sends nothing
    assert len(digits.open_test("a test")) and digits_file().read_bytes()
