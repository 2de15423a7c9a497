"""What is Starter's own; `harness check` sees the rest."""

from __future__ import annotations

import torch

from harness.method import Batch, DataSpec
from harness.rng import Rng
from harness.starter.method import Starter

DIGITS = DataSpec("digits", channels=1, size=8, classes=10)


def starter() -> Starter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Starter(Starter.recipe("nano", DIGITS), DIGITS)


def test_the_loss_is_the_squared_error_of_the_clean_image():
    method, images = starter(), Rng(0).uniform("images", (4, 1, 8, 8)) * 2 - 1
    seen = []
    method.denoised = lambda noisy: seen.append(noisy) or torch.zeros_like(noisy)
    loss = method.pretrain(Batch(images), 0.0, Rng(1))
    torch.testing.assert_close(loss.total, images.square().mean())
    assert not torch.equal(seen[0], images)


def test_a_token_stands_for_its_patch():
    """Maps are laid out as the image is: what a patch shows changes its own place most."""
    method, tap = starter().eval(), starter().taps()[-1]
    images = torch.zeros(2, 1, 8, 8)
    images[1, :, 2:4, 4:6] = 1  # the patch in row 1, column 2
    (maps,) = method.features(images, [tap], Rng(0), dense=True)
    apart = (maps[1] - maps[0]).norm(dim=0)
    assert apart.shape == (4, 4) and apart.argmax() == 1 * 4 + 2
