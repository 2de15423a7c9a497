"""What is MAE's own; the rest is in test_masked.py, tests/contract and tests/backbones."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from backbones.sizes import Trunk
from harness.config import override
from harness.data.dataset import load
from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.method import Batch, DataSpec
from harness.plugins import card
from harness.rng import Rng
from methods.mae.method import Config, Mae

DIGITS = DataSpec("digits", channels=1, size=8, classes=10)


def mae(**changes) -> Mae:
    torch.manual_seed(0)
    return Mae(dataclasses.replace(Mae.recipe("nano", DIGITS), **changes), DIGITS)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return to_float(load("digits").fit.images[:16])


def test_the_defaults_are_the_papers():
    config = Config()
    assert (config.patch, config.mask_ratio, config.norm_pix, config.crop) == (16, 0.75, True, (0.2, 1.0))
    assert config.encoder == Trunk(768, 12, 12) and config.decoder == Trunk(512, 8, 16)
    with torch.device("meta"):
        optim = Mae(config, DataSpec("x", 3, 224, 10)).optim(4096)
    assert (optim.lr_peak, optim.betas, optim.weight_decay) == (pytest.approx(2.4e-3), (0.9, 0.95), 0.05)


@pytest.mark.parametrize(
    ("channels", "size", "tokens"), [(1, 8, 16), (1, 28, 49), (3, 32, 64), (3, 64, 64), (3, 224, 49)]
)
def test_nano_cuts_every_image(channels, size, tokens):
    data = DataSpec("x", channels, size, 10)
    with torch.device("meta"):
        assert Mae(Mae.recipe("nano", data), data).core.tokens == tokens


def test_patches_of_few_numbers_are_not_standardised():
    """Digits in patches of 2 x 2 are predicted as they are, everything larger as in the paper."""
    assert not Mae.recipe("nano", DIGITS).norm_pix
    assert Mae.recipe("nano", DataSpec("x", 1, 28, 10)).norm_pix and Mae.recipe("b", DataSpec("x", 3, 224, 10)).norm_pix


def test_class_and_mask_token_decay_and_vectors_do_not():
    method = mae()
    decayed, plain = (group["params"] for group in method.param_groups())
    assert any(p is method.core.cls_token for p in decayed) and any(p is method.core.mask_token for p in decayed)
    assert all(p.ndim == 1 for p in plain)


def test_the_sampler_leaves_objective_and_gradients_alone(images):
    """The same key with and without the sampler's statistics: equal loss, equal gradients, equal parameters."""
    losses, gradients = [], []
    for every in (0, 1):
        method = mae(sampler_every=every)
        loss = method(Batch(images), 0.0, Rng(0)).total
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in method.parameters()])
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_statistics_are_updated_in_training_only(images):
    method = mae(sampler_every=1)
    method.eval()(Batch(images), 0.0, Rng(0))
    assert method.unmasking.seen.sum() == 0
    method.train()(Batch(images), 0.0, Rng(0))
    assert method.unmasking.seen.sum() == 1


def test_updates_come_on_about_every_eighth_step():
    method = mae()
    due = sum(Rng(0).at("step", k).number("unmasking") % method.config.sampler_every == 0 for k in range(800))
    assert 70 < due < 130


def test_without_statistics_sampling_says_why():
    with pytest.raises(HarnessError, match=r"without the sampler's statistics"):
        mae(sampler_every=0).sample(1, Rng(0))


@pytest.mark.parametrize("norm_pix", [True, False])
def test_reconstruction_keeps_what_it_sees(images, norm_pix):
    method = mae(norm_pix=norm_pix)
    out = method.reconstruct(images, 0.5, Rng(0)).images
    kept = (method.core.patches(out) == method.core.patches(images)).all(dim=2).sum(dim=1)
    assert out.shape == images.shape and out.abs().max() <= 1
    assert (kept >= 8).all() and (out != images).any()


def test_a_mask_ratio_that_hides_nothing_is_refused():
    with pytest.raises(HarnessError, match="mask_ratio"):
        override(Config(), {"mask_ratio": 0.0}, "mae")


def test_the_card_says_that_sampling_is_not_the_papers():
    about = card("mae")
    assert about["sampling"] == "not from the paper" and any("not from" in note for note in about["notes"])
    assert "borrowed" not in about
