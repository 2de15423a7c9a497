"""What is SimCLR's own; `harness check` sees the rest."""

from __future__ import annotations

import math

import torch

from harness.method import DataSpec
from harness.rng import Rng
from methods.simclr.method import Simclr

COLOUR = DataSpec("colour", channels=3, size=16, classes=10)


def simclr() -> Simclr:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Simclr(Simclr.recipe("nano", COLOUR), COLOUR)


def test_the_loss_is_small_where_views_agree_and_that_of_guessing_where_all_are_alike():
    method, apart = simclr(), torch.eye(4)
    agreeing = method.contrast(torch.cat([apart, apart]))
    torch.testing.assert_close(agreeing, torch.tensor(math.log(math.e**10 + 6) - 10), rtol=1e-3, atol=0)
    assert agreeing < method.contrast(torch.cat([apart, apart.roll(1, dims=0)]))
    torch.testing.assert_close(method.contrast(torch.ones(8, 4)), torch.tensor(math.log(7)))


def test_views_of_an_image_differ_and_follow_the_key():
    images = Rng(0).uniform("images", (4, 3, 16, 16)) * 2 - 1
    one, again, other = (simclr().view(images, Rng(1).at("view", which)) for which in (0, 0, 1))
    assert torch.equal(one, again) and not torch.allclose(one, other, atol=0.1)
    assert one.shape == images.shape and one.min() >= -1 and one.max() <= 1
