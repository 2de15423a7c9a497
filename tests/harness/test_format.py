"""Numbers as people read them, and intervals over seeds."""

from __future__ import annotations

import math
import random

import pytest

from harness.report import format
from harness.stats import mean_interval


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (format.fixed(-0.04, 1), "0.0"),
        (format.fixed(math.nan, 1), "nan"),
        (format.fixed(-math.inf, 1), "-inf"),
        (format.significant(0.001234), "0.00123"),
        (format.significant(9.996), "10.0"),
        (format.significant(12345.6), "12346"),
        (format.significant(0), "0"),
        (format.count(360), "360"),
        (format.count(999_999), "1.00 M"),
        (format.count(1_234_567), "1.23 M"),
        (format.count(4.5e9), "4.50 G"),
        (format.count(7e18), "7000 P"),
        (format.gflop(4.56e9), "4.56"),
        (format.memory(700 * 2**20), "700 MiB"),
        (format.memory(1.5 * 2**30), "1.50 GiB"),
        (format.time_unit([1.0, 599.0]), "s"),
        (format.time_unit([1.0, 600.0]), "min"),
        (format.time_unit([math.inf, 10_800.0]), "h"),
        (format.time_unit([]), "s"),
        (format.duration(0.0, "s"), "0"),
        (format.duration(0.001, "s"), "<0.01"),
        (format.duration(0.4, "s"), "0.40"),
        (format.duration(90.0, "min"), "1.50"),
        (format.age(30), "30 s"),
        (format.age(18_000), "5.0 h"),
    ],
)
def test_numbers_as_people_read_them(made: str, wanted: str) -> None:
    assert made == wanted


def test_mean_interval_covers_the_truth_95_times_in_100() -> None:
    draw = random.Random(0)
    hits = 0
    for _ in range(4000):
        mean, half = mean_interval([draw.gauss(3.0, 2.0) for _ in range(3)])
        assert half is not None
        hits += abs(mean - 3.0) <= half
    assert 0.94 < hits / 4000 < 0.96


def test_mean_interval_of_values_that_are_not_finite() -> None:
    assert mean_interval([5.0]) == (5.0, None)
    assert mean_interval([1.0, math.inf]) == (math.inf, None)
    assert math.isnan(mean_interval([math.inf, -math.inf])[0])
    assert math.isnan(mean_interval([1.0, math.nan])[0])
