"""EDM: the card's numbers, the reference's own, and a sampler that is of second order."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backbones.edm import Edm
from harness.errors import HarnessError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ddae.json").read_text())
EDM = Edm()


def wave(scale: float, rate: float, phase: float) -> Tensor:
    return (scale * torch.sin(rate * torch.arange(2 * 3 * 8 * 8).double() + phase)).float().view(2, 3, 8, 8)


X, NOISE, SIGMA = wave(0.9, 0.11, 0.5), wave(1.3, 0.23, 0.1), torch.tensor([0.06, 2.0])


def toy(x: Tensor, told: Tensor) -> Tensor:
    return 0.9 * torch.tanh(0.8 * x + told.view(-1, 1, 1, 1))


def zero(x: Tensor, told: Tensor) -> Tensor:
    return torch.zeros_like(x)


def near(found: Tensor, wanted: dict) -> None:
    assert found.flatten()[:3].tolist() == pytest.approx(wanted["first"], abs=2e-6)
    assert found.double().abs().mean().item() == pytest.approx(wanted["mean_abs"], rel=2e-6)


def test_the_grid_is_the_cards_and_diffusers():
    from diffusers import EDMEulerScheduler

    grid = EDM.grid(18)
    assert grid[:-1][::-1] == pytest.approx(GOLDEN["card"]["sigmas"], rel=3e-4, abs=6e-7) and grid[-1] == 0
    theirs = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    theirs.set_timesteps(18)
    assert grid == pytest.approx(theirs.sigmas.tolist(), rel=1e-6)
    assert EDM.grid(1) == [pytest.approx(80.0), 0.0]


def test_feature_levels_are_counted_from_the_least_noise_and_0_is_none():
    assert EDM.level(1) == pytest.approx(0.002) and EDM.level(18) == pytest.approx(80)
    told = GOLDEN["card"]["told_of_edm"]
    assert {k: math.log(EDM.level(int(k))) / 4 for k in told} == pytest.approx(told, abs=6e-5)
    for wrong in (0, 19):
        with pytest.raises(HarnessError, match="from 1 to 18"):
            EDM.level(wrong)


def test_what_the_network_sees_is_scaled_and_told():
    seen = []
    EDM.denoised(lambda x, told: seen.append((x, told)) or x, X, SIGMA)
    (x, told) = seen[0]
    torch.testing.assert_close(told, SIGMA.log() / 4)
    torch.testing.assert_close(x, X / (SIGMA.view(-1, 1, 1, 1) ** 2 + 0.25).sqrt())


def test_without_a_network_it_is_the_best_guess_about_a_gaussian():
    found = EDM.denoised(zero, X, SIGMA)
    torch.testing.assert_close(found, X * 0.25 / (0.25 + SIGMA.view(-1, 1, 1, 1) ** 2))


def test_the_weight_makes_the_networks_error_count_once():
    """The loss is the mean squared distance of F to what would give the clean image exactly."""
    s = SIGMA.view(-1, 1, 1, 1)
    noised, total = X + s * NOISE, s**2 + 0.25
    target = (X - 0.25 / total * noised) / (s * 0.5 / total.sqrt())
    found = EDM.loss(toy, X, SIGMA, NOISE)
    torch.testing.assert_close(found, (toy(noised / total.sqrt(), SIGMA.log() / 4) - target).square().mean())


def test_training_levels_are_log_normal():
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    logs = EDM.drawn(normal).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.03) and logs.std().item() == pytest.approx(1.2, abs=0.03)


# -- the sampler -------------------------------------------------------------------------------------------------------


def test_heun_equals_the_reference():
    near(EDM.heun(toy, NOISE, 18), GOLDEN["tiny"]["heun18"])


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_it_takes_two_evaluations_a_step_but_the_last(steps):
    told = []
    EDM.heun(lambda x, t: told.append(t) or zero(x, t), NOISE, steps)
    assert len(told) == 2 * steps - 1


def test_its_error_falls_with_the_square_of_the_steps():
    """For Gaussian images (no network) the whole way down is known."""
    exact = NOISE.double() * 80 * 0.5 / math.sqrt(80**2 + 0.25)
    errors = [(EDM.heun(zero, NOISE.double(), n, clip=False) - exact).abs().max().item() for n in (18, 36, 72)]
    assert errors[0] < 0.05 and all(3 < a / b < 6 for a, b in pairwise(errors)), errors


def test_clipping_keeps_the_guess_in_range():
    def far(x: Tensor, told: Tensor) -> Tensor:
        return torch.full_like(x, 5.0)

    assert EDM.heun(far, NOISE, 18).max() <= 1 + 1e-6
    assert EDM.heun(far, NOISE, 18, clip=False).max() > 1.5


def test_wrong_constants_are_refused():
    for wrong in ({"sigma_min": 0.0}, {"sigma_max": 0.001}, {"levels": 1}, {"p_std": 0.0}):
        with pytest.raises(ValueError):
            replace(EDM, **wrong)
    with pytest.raises(HarnessError, match="sampling steps"):
        EDM.grid(0)
