"""DDAE's pre-training in ADM's layout against the reference's: loss, gradient, and its sampler with noise given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from backbones.adm_unet import mapped
from backbones.unet import UnetConfig
from harness.method import DataSpec
from methods.ddae.method import Config, Ddae
from tests.backbones.adm_twin import filled, official

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "adm.json").read_text())
NET = UnetConfig(width=64, mults=(1, 2), blocks=1, attention=(1,))
LEVELS = torch.tensor([0, 90, 300, 900])


def normal(seed: int, n: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((n, 3, 16, 16))).float()


class Given:
    """The noise of each step."""

    def at(self, _: str, step: int) -> Given:
        self.step = step
        return self

    def normal(self, _: str, shape: tuple[int, ...]) -> Tensor:
        return normal(100 + self.step, shape[0])


@pytest.fixture(scope="module")
def method() -> Ddae:
    made = Ddae(Config(net=NET, layout="adm"), DataSpec("twin", 3, 16, 10))
    state = filled(official(NET.width, NET.mults, NET.blocks, NET.attention), 3000)
    placed = mapped({name: tensor.float() for name, tensor in state.items()}, made.config.net)
    made.network.load_state_dict({ours: tensor for ours, (_, tensor) in placed.items()})
    return made


def test_loss_and_gradient_equal_the_reference(method):
    loss = method.loss(normal(1, 4).mul(0.5).clamp(-1, 1), LEVELS, normal(2, 4))
    assert loss.total.item() == pytest.approx(GOLDEN["loss"], rel=2e-6)
    loss.total.backward()
    norm = torch.stack([p.grad.norm() for p in method.parameters()]).norm()
    assert norm.item() == pytest.approx(GOLDEN["gradient_norm"], rel=1e-5)


def test_the_sampler_equals_the_reference(method):
    with torch.no_grad():
        drawn = method.ancestral(normal(3, 2), GOLDEN["steps"], Given(), method.network)
    assert drawn.abs().mean().item() == pytest.approx(GOLDEN["mean_abs"], rel=1e-5)
    torch.testing.assert_close(drawn[:, 0, 7], torch.tensor(GOLDEN["row"]), rtol=0, atol=2e-5)
