"""Optimizers and the rate over the budget: warm-up from 0, the peak, the end."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from harness.errors import HarnessError
from harness.method import Optim
from harness.train.optim import build_optimizer, rate, set_rate
from tests.toys import Toy, build

COSINE = Optim(2e-3, warmup=0.1)
CONSTANT = replace(COSINE, schedule="constant")


@pytest.mark.parametrize(
    ("optim", "progress", "lr"),
    [
        (COSINE, 0.0, 0.0),
        (COSINE, 0.05, 1e-3),
        (COSINE, 0.1, 2e-3),
        (COSINE, 0.55, 1e-3),
        (COSINE, 1.0, 0.0),
        (COSINE, 1.01, 0.0),
        (CONSTANT, 0.0, 0.0),
        (CONSTANT, 0.05, 1e-3),
        (CONSTANT, 0.1, 2e-3),
        (CONSTANT, 1.0, 2e-3),
        (replace(COSINE, warmup=0.0), 0.0, 2e-3),
        (replace(COSINE, warmup=1.0), 0.5, 1e-3),
    ],
)
def test_the_rate_over_the_budget(optim: Optim, progress: float, lr: float) -> None:
    assert rate(optim, progress) == pytest.approx(lr, abs=1e-12)


def test_the_cosine_falls_all_the_way_and_has_no_jump() -> None:
    curve = [rate(COSINE, i / 1000) for i in range(100, 1001)]
    falls = [a - b for a, b in itertools.pairwise(curve)]
    assert all(fall > 0 for fall in falls)
    assert max(falls) < 2e-3 * 0.002


def test_unknown_names_are_refused() -> None:
    with pytest.raises(HarnessError, match=r"unknown schedule 'linear'[\s\S]*cosine or constant"):
        rate(replace(COSINE, schedule="linear"), 0.5)
    with pytest.raises(HarnessError, match=r"unknown optimizer 'sgd'[\s\S]*adamw or adan"):
        build_optimizer(build(), replace(COSINE, name="sgd"))


def test_groups_keep_their_own_decay_and_scale_of_the_rate() -> None:
    toy = build()
    groups = toy.param_groups()
    groups[0]["lr_scale"] = 0.25
    toy.param_groups = lambda: groups
    optimizer = build_optimizer(toy, replace(COSINE, weight_decay=0.3))
    set_rate(optimizer, 1e-2)
    assert [(group["weight_decay"], group["lr"]) for group in optimizer.param_groups] == [(0.3, 2.5e-3), (0.0, 1e-2)]
    assert {p.ndim for p in optimizer.param_groups[0]["params"]} == {2}
    assert {p.ndim for p in optimizer.param_groups[1]["params"]} == {1}


def step(toy: Toy, optimizer: torch.optim.Optimizer, gradient: float) -> None:
    for p in toy.parameters():
        p.grad = torch.full_like(p, gradient)
    optimizer.step()


def test_adamw_takes_its_first_step_by_the_rate_and_the_decay() -> None:
    toy = build()
    weight, bias = toy.first.weight.detach().clone(), toy.first.bias.detach().clone()
    optimizer = build_optimizer(toy, replace(COSINE, weight_decay=0.1))
    set_rate(optimizer, 0.01)
    step(toy, optimizer, gradient=3.0)
    torch.testing.assert_close(toy.first.weight.detach(), weight * (1 - 0.01 * 0.1) - 0.01)
    torch.testing.assert_close(toy.first.bias.detach(), bias - 0.01)


def test_adan_takes_its_steps_as_its_paper_has_them() -> None:
    """Xie et al. 2022, algorithm 1 in float64, with bias correction and decay by division."""
    toy = build(optimizer="adan").double()
    b1, b2, b3 = betas = (0.98, 0.92, 0.99)
    optimizer = build_optimizer(toy, Optim(1e-2, name="adan", betas=betas, weight_decay=0.02, eps=1e-8))
    set_rate(optimizer, 0.01)
    expected = toy.first.weight.detach().clone()
    m = v = n = 0.0
    before = None
    for k, gradient in enumerate([1.0, -2.0, 0.5], start=1):
        step(toy, optimizer, gradient)
        change = 0.0 if before is None else gradient - before
        m = b1 * m + (1 - b1) * gradient
        v = b2 * v + (1 - b2) * change
        n = b3 * n + (1 - b3) * (gradient + b2 * change) ** 2
        scale = 0.01 / ((n / (1 - b3**k)) ** 0.5 + 1e-8)
        update = scale * (m / (1 - b1**k) + b2 * v / (1 - b2**k))
        expected = (expected - update) / (1 + 0.01 * 0.02)
        before = gradient
    torch.testing.assert_close(toy.first.weight.detach(), expected, rtol=1e-6, atol=1e-9)
