"""Budgets: what can be typed, what is refused with which words, and how spending is counted."""

from __future__ import annotations

import pytest

from harness.budget import UNITS, Budget, Meter, check_devices, parse_budget
from harness.errors import HarnessError


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("pattern", ["3{}", "3 {}", " 3.0{} ", "3e0{}", "+3{}"])
def test_every_unit_is_read_in_every_spelling_of_its_amount(unit: str, pattern: str) -> None:
    assert parse_budget(pattern.format(unit)) == Budget(3.0, unit)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("300steps", Budget(300, "step")),
        ("10 epochs", Budget(10, "epoch")),
        ("5mins", Budget(5, "min")),
        ("100gpu-hs", Budget(100, "gpu-h")),
        ("60s", Budget(60, "s")),
        ("2H", Budget(2, "h")),
        ("100GPU-h", Budget(100, "gpu-h")),
        ("1e15flop", Budget(1e15, "flop")),
        ("2.5E+9flops", Budget(2.5e9, "flop")),
        ("1_000_000img", Budget(1e6, "img")),
        ("0.5epoch", Budget(0.5, "epoch")),
    ],
)
def test_plurals_capitals_and_scientific_amounts(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    ("text", "near"), [("100gpuh", "gpu-h"), ("3gpumin", "gpu-min"), ("5minutes", "min"), ("1epcohs", "epoch")]
)
def test_an_unknown_unit_suggests_the_nearest(text: str, near: str) -> None:
    with pytest.raises(HarnessError, match=f"did you mean '{near}'"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("60", "has no unit"),
        ("1e5", "has no unit"),
        ("", "cannot read"),
        ("min", "cannot read"),
        ("1.2.3min", "cannot read the amount"),
        ("1min 30s", "cannot read"),
        ("0min", "above 0"),
        ("-3step", "above 0"),
        ("nan min", "not finite"),
        ("inf h", "not finite"),
        ("-inf h", "not finite"),
        ("1e999flop", "not finite"),
        ("1e6h", "ten years"),
        ("1e6gpu-h", "ten years"),
        ("1.5step", "whole number of steps"),
    ],
)
def test_a_budget_that_buys_nothing_names_its_fault_and_an_example(text: str, words: str) -> None:
    with pytest.raises(HarnessError, match=words) as caught:
        parse_budget(text)
    assert "--budget 1min" in caught.value.next_step


@pytest.mark.parametrize("text", ["1e15flop", "100gpu-h", "0.25epoch", "1e-05h", "300step", "123456789012img"])
def test_a_printed_budget_is_read_back_and_fits_a_file_name(text: str) -> None:
    budget = parse_budget(text)
    assert parse_budget(str(budget)) == budget
    assert "+" not in str(budget)
    assert str(parse_budget("1e15 flops")) == "1e15flop"


@pytest.mark.parametrize(("text", "wall"), [("100gpu-h", "--budget 100h"), ("5gpu-min", "--budget 5min")])
def test_gpu_time_needs_a_gpu_and_the_refusal_names_the_wall_time(text: str, wall: str) -> None:
    with pytest.raises(HarnessError, match="no GPU") as caught:
        check_devices(parse_budget(text), gpus=0)
    assert wall in caught.value.next_step
    check_devices(parse_budget(text), gpus=1)
    check_devices(parse_budget("5min"), gpus=0)


METER = Meter(wall_s=90, device_s=360, flop=5e12, img=2560, epoch=2.5, step=20)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("3min", 0.5),
        ("90s", 1.0),
        ("1h", 0.025),
        ("0.2gpu-h", 0.5),
        ("12gpu-min", 0.5),
        ("1e13flop", 0.5),
        ("5120img", 0.5),
        ("10epoch", 0.25),
        ("16step", 1.25),
    ],
)
def test_spent_reads_the_meter_in_the_budgets_own_unit(text: str, share: float) -> None:
    budget = parse_budget(text)
    assert budget.spent(METER) == pytest.approx(share)


def test_only_seconds_are_time() -> None:
    assert {unit for unit in UNITS if Budget(1, unit).is_time} == {"gpu-h", "gpu-min", "h", "min", "s"}
