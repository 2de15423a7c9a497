"""The moving average: one rule for its half-life, and what it gives to evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.config import override
from harness.errors import HarnessError
from harness.train.ema import Ema
from harness.train.settings import TrainConfig
from tests.toys import build


def shift(module: nn.Module, k: int) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * (k % 5) - 0.15)


def test_it_follows_a_plain_loop_in_float64() -> None:
    toy = build()
    ema = Ema(toy)
    plain = {name: p.detach().double().clone() for name, p in toy.named_parameters()}
    seen = 0
    for k, batch in enumerate([8, 8, 3, 64, 1, 8] * 20):
        shift(toy, k)
        seen += batch
        ema.update(seen, batch, k + 1)
        half_life = min(500_000, 0.05 * seen)
        keep = 0.5 ** (batch / half_life)
        for name, p in toy.named_parameters():
            plain[name] = keep * plain[name] + (1 - keep) * p.detach().double()
    for name, average in ema.averaged.items():
        torch.testing.assert_close(average.double(), plain[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("seen", "half_life"), [(1000, 50), (100_000, 5000), (10_000_000, 500_000), (1e9, 500_000)])
def test_half_of_a_change_remains_after_a_half_life(seen: float, half_life: int) -> None:
    line = nn.Linear(1, 1)
    with torch.no_grad():
        line.weight.fill_(0.0)
    ema = Ema(line)
    with torch.no_grad():
        line.weight.fill_(1.0)
    ema.update(seen, half_life, 1)
    assert ema.averaged["weight"].item() == pytest.approx(0.5, rel=1e-5)


def test_what_is_evaluated_is_the_average_with_the_modules_own_buffers_and_frozen_parts() -> None:
    toy = build()
    toy.last.requires_grad_(False)
    ema = Ema(toy)
    initial = {name: tensor.clone() for name, tensor in toy.state_dict().items()}
    shift(toy, 0)
    toy.calls += 7
    settled = ema.settled(toy)
    assert settled.keys() == toy.state_dict().keys()
    assert torch.equal(settled["first.weight"], initial["first.weight"]), "no update has been made"
    assert torch.equal(settled["last.weight"], toy.last.weight) and not torch.equal(
        settled["last.weight"], initial["last.weight"]
    )
    assert settled["calls"] == 7
    assert not any(tensor.requires_grad for tensor in settled.values())


def test_a_tied_weight_is_averaged_under_both_its_names() -> None:
    tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied["b"].weight = tied["a"].weight
    ema = Ema(tied)
    shift(tied, 0)
    settled = ema.settled(tied)
    assert torch.equal(settled["a.weight"], settled["b.weight"])
    tied.load_state_dict(settled)
    assert torch.equal(tied["a"].weight, ema.averaged["a.weight"])


# -- DDAE's rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [0.9, 0.9993, 0.9999])
def test_with_a_cap_it_is_diffusers_power_rule(cap: float) -> None:
    from diffusers.training_utils import EMAModel

    toy = build()
    ema = Ema(toy, cap)
    settings = {"decay": cap, "use_ema_warmup": True, "inv_gamma": 1.0, "power": 2 / 3, "update_after_step": 0}
    theirs = EMAModel(toy.parameters(), **settings)
    for step in range(1, 301):
        shift(toy, step)
        ema.update(8 * step, 8, step)
        theirs.step(toy.parameters())
    for ours, other in zip(ema.averaged.values(), theirs.shadow_params, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "cap", "decay"),
    [
        (1, 0.9999, 0.0),
        (78_000, 0.9999, 0.99945),
        (196_000, 0.9999, 0.99970),
        (392_000, 0.9999, 0.99981),
        (53_900, 0.9993, 0.999299),
        (54_100, 0.9993, 0.9993),
        (2_000_000, 0.9999, 0.9999),
    ],
)
def test_decays_of_the_cap_are_the_cards(step: int, cap: float, decay: float) -> None:
    line = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(line.weight)
    ema = Ema(line, cap)
    nn.init.ones_(line.weight)
    ema.update(1, 1, step)
    assert 1 - ema.averaged["weight"].item() == pytest.approx(decay, abs=6e-6)


def test_the_setting_is_on_off_or_a_cap() -> None:
    for value in (True, False, 0.9993):
        found = override(TrainConfig(), {"ema": value}, "train").ema
        assert found == value and type(found) is type(value)
    for wrong in (1, 0, 1.5, "soon"):
        with pytest.raises(HarnessError, match="ema"):
            override(TrainConfig(), {"ema": wrong}, "train")
