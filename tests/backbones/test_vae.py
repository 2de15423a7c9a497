"""The VAE's three ways behind one face."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from backbones.tiny_vae import FILES
from backbones.vae import Vae, VaeObjective, pretrained_kl, small_kl, taef2
from harness.data.dataset import load
from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.method import Batch
from harness.rng import Rng

WEIGHTS = Path(os.environ.get("HARNESS_DATA", "nowhere")) / "weights"
needs_taef2 = pytest.mark.skipif(not (WEIGHTS / FILES[0]).is_file(), reason="no TAEF2 weights under HARNESS_DATA")


def colour_vae() -> Vae:
    """4x down by its own strides, as the field's VAEs are."""
    levels = 3
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )
    return Vae(network, 4, 4, 3, 32)


@pytest.mark.parametrize(
    ("channels", "side", "latent_side"), [(1, 8, 4), (1, 28, 7), (3, 32, 8), (3, 64, 16), (3, 224, 28)]
)
def test_small_vae_fits_every_image(channels, side, latent_side):
    vae = small_kl(channels, side, "nano")
    images = torch.zeros(1, channels, side, side)
    latents = vae.encode(images)
    assert latents.shape == (1, vae.channels, latent_side, latent_side)
    assert vae.latent_side == latent_side and vae.factor == side // latent_side
    assert vae.decode(latents).shape == images.shape


@pytest.mark.parametrize("side", [7, 9, 6])
def test_small_vae_refuses_what_it_cannot_halve(side):
    with pytest.raises(HarnessError, match="no small VAE"):
        small_kl(1, side, "nano")


@pytest.mark.parametrize(("channels", "side", "latent_channels"), [(1, 8, 4), (1, 28, 16), (3, 8, 12), (3, 32, 16)])
def test_small_latents_never_hold_more_numbers_than_the_image(channels, side, latent_channels):
    vae = small_kl(channels, side, "nano")
    assert vae.channels == latent_channels
    assert vae.channels * vae.latent_side**2 <= channels * side**2


def test_encoding_is_the_posteriors_mode():
    vae, images = small_kl(1, 8, "nano"), torch.rand(4, 1, 8, 8)
    posterior = vae.code(images).latent_dist
    torch.testing.assert_close(vae.encode(images), posterior.mean)


def test_the_objective_learns_to_reconstruct_digits():
    """Forty steps on digits bring the error well down, keep the latents near unit scale, and train the VAE alone."""
    torch.manual_seed(0)
    vae = small_kl(1, 8, "nano")
    assert not any(p.requires_grad for p in vae.parameters())
    objective = VaeObjective(vae)
    optimizer = torch.optim.AdamW(objective.param_groups(), lr=3e-3)
    assert all(p.requires_grad for p in vae.parameters())
    images = to_float(load("digits").fit.images[:32])
    errors = []
    for step in range(40):
        loss = objective(Batch(images), 0.0, Rng(0).at(step))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        errors.append(loss.terms["l1"].item())
    assert errors[-1] < 0.6 * errors[0]
    assert 0.3 < vae.encode(images).std() < 3


def test_the_objectives_noise_follows_the_key():
    objective, batch = VaeObjective(small_kl(1, 8, "nano")), Batch(torch.rand(4, 1, 8, 8))
    first, again, other = (objective(batch, 0.0, Rng(seed)).total for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_vae_from_a_folder(tmp_path):
    """What diffusers saved comes back, frozen, in float32, and says that it is borrowed."""
    saved = colour_vae()
    saved.network.save_pretrained(tmp_path / "vae")
    for folder in (tmp_path / "vae", tmp_path):  # the VAE itself, or a pipeline's folder around it
        vae = pretrained_kl(str(folder), 3, 32)
        images = torch.rand(2, 3, 32, 32) * 2 - 1
        torch.testing.assert_close(vae.encode(images), saved.encode(images))
        assert vae.borrowed and vae.factor == 4 and not any(p.requires_grad for p in vae.parameters())


def test_a_borrowed_vae_takes_grey_images_of_any_side(tmp_path):
    colour_vae().network.save_pretrained(tmp_path)
    vae = pretrained_kl(str(tmp_path), 1, 9)
    images = torch.rand(2, 1, 9, 9) * 2 - 1
    latents = vae.encode(images)
    assert latents.shape == (2, 4, 4, 4)  # resized to 16 px, the least that leaves 4 x 4
    assert vae.decode(latents).shape == images.shape


def test_a_borrowed_vae_that_is_not_of_colour_images_is_refused(tmp_path):
    grey = AutoencoderKL(1, 1, block_out_channels=(8,), norm_num_groups=8)
    grey.save_pretrained(tmp_path)
    with pytest.raises(HarnessError, match=r"takes 1 channels") as error:
        pretrained_kl(str(tmp_path), 1, 8)
    assert error.value.expected == "a colour VAE"


def test_a_borrowed_vae_stays_in_float32_under_autocast(tmp_path):
    colour_vae().network.save_pretrained(tmp_path)
    borrowed, images = pretrained_kl(str(tmp_path), 3, 32), torch.rand(2, 3, 32, 32)
    plain = borrowed.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(borrowed.encode(images), plain)
        own = Vae(borrowed.network, 4, 4, 3, 32).encode(images)
    assert own.dtype == torch.float32 and not torch.equal(own, plain)


def test_a_vae_that_is_not_here():
    with pytest.raises(HarnessError, match="not on this machine") as error:
        pretrained_kl("nobody/no-such-vae", 3, 32)
    assert "hf download nobody/no-such-vae" in str(error.value)


def test_taef2_without_weights(tmp_path, monkeypatch):
    with pytest.raises(HarnessError, match=FILES[0]):
        taef2(str(tmp_path), 3, 32)
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    with pytest.raises(HarnessError, match="HARNESS_DATA is not set"):
        taef2("", 3, 32)


@needs_taef2
def test_taef2_reconstructs_real_images():
    """PSNR of real 32 px images as the weights' makers' code gives it (24.1 dB on the test images), not the 14.6 dB
    that remain without the pool branch."""
    images = to_float(load("cifar10").fit.images[:32])
    vae = taef2("", 3, 32)
    latents = vae.encode(images)
    assert latents.shape == (32, 32, 4, 4)
    error = (vae.decode(latents).clamp(-1, 1) - images).square().mean(dim=(1, 2, 3))
    psnr = (10 * torch.log10(4 / error)).mean()
    assert 22.5 < psnr < 26


@needs_taef2
@pytest.mark.parametrize(("channels", "side", "latent_side"), [(1, 8, 4), (1, 28, 4), (3, 64, 8)])
def test_taef2_fits_other_images(channels, side, latent_side):
    vae = taef2(str(WEIGHTS), channels, side)
    latents = vae.encode(torch.zeros(1, channels, side, side))
    assert latents.shape == (1, 32, latent_side, latent_side)
    assert vae.decode(latents).shape == (1, channels, side, side)
