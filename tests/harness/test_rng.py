"""Randomness by name: a draw depends on its key alone, never on what was drawn before or on torch's global state."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from harness.rng import Rng


def draws(rng: Rng) -> dict[str, Tensor]:
    return {
        "normal": rng.normal("a", (3, 2)),
        "uniform": rng.uniform("a", (5,)),
        "integers": rng.integers("a", 10, (50,)),
        "permutation": rng.permutation("a", 9),
    }


def test_the_same_key_gives_the_same_numbers_in_any_order() -> None:
    rng = Rng(3).at("train", "step", 7)
    first = draws(rng)
    rng.normal("something else", (100,))
    again = dict(reversed(draws(Rng(3).at("train").at("step", 7)).items()))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_torchs_global_state_is_neither_read_nor_moved() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        first = draws(Rng(0))
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())
        torch.manual_seed(2)
        second = draws(Rng(0))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_different_keys_give_different_streams() -> None:
    rng = Rng(0)
    places = [
        rng,
        Rng(1),
        rng.at("a"),
        rng.at("b"),
        rng.at("a", "b"),
        rng.at("a/b"),
        rng.at("a'/'b"),
        rng.at(1),
        rng.at("1"),
        rng.at("a", 1),
        rng.at("a", 11),
        rng.at("a", 1, 1),
    ]
    assert len({place.number() for place in places}) == len(places)
    assert not torch.equal(rng.normal("a", (4,)), rng.normal("b", (4,)))
    assert all(0 <= place.number() < 2**63 for place in places)


def test_the_streams_stay_what_they_were() -> None:
    """Runs that started under an older version have to go on under this one."""
    assert Rng(0).number() == 4761921975702974394
    assert Rng(7).at("train", "step", 3).number("noise") == 4970565553510821060


def test_draws_have_their_ranges() -> None:
    rng = Rng(0)
    assert rng.normal("x", (2, 3)).dtype == torch.float32
    uniform = rng.uniform("x", (1000,))
    assert 0 <= uniform.min() < 0.05 and 0.95 < uniform.max() < 1
    assert set(rng.integers("x", 4, (200,)).tolist()) == {0, 1, 2, 3}
    assert sorted(rng.permutation("x", 50).tolist()) == list(range(50))
    normal = rng.normal("x", (4000,))
    assert abs(normal.mean()) < 0.1 and abs(normal.std() - 1) < 0.1
