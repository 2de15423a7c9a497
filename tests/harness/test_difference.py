"""Differences of methods: intervals that hold as often as they say, and ranks that follow from them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness import difference as module
from harness.difference import BOTH, IMAGES, SEEDS, UNPAIRED, Measured, difference, ranks


def drawn(rng, seeds: int, n: int, of_seed: float, of_image: float, of_both: float, gap: float):
    """Two methods that guess the same `n` images, under `seeds` seeds: a guess is right where a sum of effects is
    positive. The last is the true difference, in points, over all seeds and images."""
    base, own = rng.normal(size=n), rng.normal(size=n) * of_image
    hits: list[dict[int, np.ndarray]] = [{}, {}]
    for seed in range(seeds):
        common = rng.normal() * of_seed
        for which, mine in enumerate(hits):
            shift = common + rng.normal() * of_seed + (gap if which == 0 else 0)
            mine[seed] = (base + (own if which == 0 else 0) + shift + rng.normal(size=n) * of_both > 0).astype(float)
    methods = [Measured({s: 100 * h.mean() for s, h in mine.items()}, mine) for mine in hits]
    wide = np.sqrt(1 + 2 * of_seed**2 + of_both**2 + of_image**2)
    return *methods, 100 * (stats.norm.cdf(gap / wide) - 0.5)


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_image", "of_both"),
    [
        (3, 0.1, 0.3, 0.5),
        (3, 0.02, 0.3, 0.5),
        (3, 0.0, 0.3, 0.5),
        (2, 0.05, 0.3, 0.5),
        (5, 0.03, 0.1, 1.0),
        (1, 0, 0.3, 0.5),
    ],
)
def test_intervals_hold_in_95_of_100_studies(monkeypatch, seeds, of_seed, of_image, of_both):
    monkeypatch.setattr(module, "RESAMPLES", 1000)
    rng, held, many = np.random.default_rng(1), 0, 800
    for _ in range(many):
        one, other, truth = drawn(rng, seeds, 500, of_seed, of_image, of_both, gap=0.1)
        found = difference(one, other)
        held += found.low <= truth <= found.high
    assert 0.93 <= held / many <= 0.97


def test_of_one_seed_the_interval_is_that_of_resampled_images():
    """Beside images resampled one by one."""
    one, other, _ = drawn(np.random.default_rng(2), 1, 400, 0, 0.3, 0.5, gap=0.2)
    found = difference(one, other)
    gap = 100 * (one.hits[0] - other.hits[0])
    picks = np.random.default_rng(3).integers(0, 400, size=(20_000, 400))
    low, high = np.quantile(gap[picks].mean(axis=1), [0.025, 0.975])
    assert found.test == IMAGES and found.mean == pytest.approx(gap.mean())
    assert (found.low, found.high) == (pytest.approx(low, abs=0.3), pytest.approx(high, abs=0.3))


def test_without_images_the_seeds_are_paired():
    one, other = Measured({0: 50.0, 1: 54.0, 2: 52.0}), Measured({0: 48.0, 1: 51.5, 2: 50.5})
    found = difference(one, other)
    theirs = stats.ttest_rel([50, 54, 52], [48, 51.5, 50.5]).confidence_interval()
    assert (found.low, found.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert found.test == SEEDS and found.told and not difference(one, Measured({0: 50.0, 1: 51.5, 2: 53.0})).told


def test_methods_that_share_no_seed_are_not_paired():
    one, other = Measured({0: 50.0, 1: 54.0, 2: 52.0}), Measured({3: 48.0, 4: 47.5, 5: 49.5, 6: 48.0})
    found = difference(one, other)
    theirs = stats.ttest_ind([50, 54, 52], [48, 47.5, 49.5, 48], equal_var=False).confidence_interval()
    assert (found.low, found.high, found.test) == (pytest.approx(theirs.low), pytest.approx(theirs.high), UNPAIRED)


@pytest.mark.parametrize("other", [Measured({0: 48.0}), Measured({1: 48.0}), Measured({0: float("inf"), 1: 3.0})])
def test_what_nothing_tells_from_chance_has_no_interval(other):
    assert difference(Measured({0: 50.0}), other) is None


def test_equal_methods_differ_by_nothing_and_seeds_that_agree_leave_the_images():
    one, other, _ = drawn(np.random.default_rng(4), 3, 200, 0.05, 0.3, 0.5, gap=0.3)
    same = difference(one, one)
    assert (same.mean, same.low, same.high, same.told) == (0.0, 0.0, 0.0, False)
    frozen = [Measured(dict.fromkeys(range(3), m.values[0]), dict.fromkeys(range(3), m.hits[0])) for m in (one, other)]
    found, single = difference(*frozen), difference(*(Measured({0: m.values[0]}, {0: m.hits[0]}) for m in (one, other)))
    assert found.test == BOTH and found.high - found.low == pytest.approx(single.high - single.low, rel=0.05)


def test_a_rank_is_an_interval_of_the_places_that_cannot_be_told_apart():
    rows = [Measured({s: value + 0.1 * s for s in range(3)}) for value in (50.0, 60.0)]
    rows.append(Measured({0: 60.3, 1: 59.8, 2: 60.4}))
    assert ranks(rows) == [(3, 3), (1, 2), (1, 2)]
    assert ranks(rows, higher=False) == [(1, 1), (2, 3), (2, 3)]
    assert ranks([Measured({0: 1.0}), Measured({0: 2.0})]) == [(1, 2), (1, 2)]
