"""What is LMD's own: the schedules, the latents, the frozen VAE. The rest is in
test_masked.py, tests/contract and tests/backbones."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from backbones.masked_autoencoder import DECODERS, MaskedAutoencoder
from backbones.sizes import TRUNKS
from backbones.tiny_vae import FILES
from backbones.tokens import kept_tokens, random_drop
from harness.config import override, plain
from harness.data.dataset import load
from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.method import Batch, DataSpec
from harness.rng import Rng
from methods.lmd.method import Config, Lmd, latent_patch, mask_ratio

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lmd.json").read_text())
DIGITS = DataSpec("digits", channels=1, size=8, classes=10)
WEIGHTS = Path(os.environ.get("HARNESS_DATA", "nowhere")) / "weights"
TOKENS = 49


def lmd(data: DataSpec = DIGITS, **changes) -> Lmd:
    torch.manual_seed(0)
    return Lmd(dataclasses.replace(Lmd.recipe("nano", data), **changes), data)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return to_float(load("digits").fit.images[:16])


# -- the schedules (golden) --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "ratio", "kept"), GOLDEN["cosine"])
def test_the_cosine_schedule(step, ratio, kept):
    found = mask_ratio(step / GOLDEN["cosine_steps"], Config(schedule="cosine"))
    assert found == pytest.approx(ratio, abs=1e-9 if step != 0 else 1e-12)
    assert kept_tokens(TOKENS, found) == kept


@pytest.mark.parametrize("row", GOLDEN["piecewise_linear"], ids=lambda row: f"{row[0]}/24")
def test_the_piecewise_and_linear_schedules(row):
    part, piecewise, kept_piecewise, linear, kept_linear = row
    for schedule, ratio, kept in (("piecewise", piecewise, kept_piecewise), ("linear", linear, kept_linear)):
        found = mask_ratio(part / 24, Config(schedule=schedule))
        assert found == pytest.approx(ratio, abs=1e-9)
        assert kept_tokens(TOKENS, found) == kept


@pytest.mark.parametrize("schedule", ["cosine", "piecewise", "linear"])
def test_schedules_cost_the_same(schedule):
    """Mean ratio and mean kept tokens over the training, and no schedule ever falls or leaves its bounds."""
    ratios = [mask_ratio((i + 0.5) / 9000, Config(schedule=schedule)) for i in range(9000)]
    assert sum(ratios) / 9000 == pytest.approx(GOLDEN["mean_ratio"][schedule], abs=1e-3)
    kept = sum(kept_tokens(TOKENS, r) for r in ratios) / 9000
    assert kept == pytest.approx(GOLDEN["mean_kept"][schedule], abs=0.02)
    assert ratios == sorted(ratios) and ratios[0] >= 0.15 and ratios[-1] == 0.75


def test_the_constant_schedule_is_maes():
    assert {mask_ratio(u, Config(schedule="constant")) for u in (0.0, 0.5, 0.99)} == {0.75}


def test_the_mask_follows_the_progress(images):
    method = lmd()
    ratios = [method(Batch(images), u, Rng(0)).terms["mask_ratio"].item() for u in (0.0, 0.4, 0.9)]
    assert ratios == pytest.approx([mask_ratio(u, method.config) for u in (0.0, 0.4, 0.9)])


# -- the network (golden) ----------------------------------------------------------------------------------------


def base_on_meta() -> MaskedAutoencoder:
    with torch.device("meta"):
        return MaskedAutoencoder(4, 28, 4, TRUNKS["b"], DECODERS["b"], decoder_position=-1)


def test_parameters_of_the_papers_network():
    counts = {name: p.numel() for name, p in base_on_meta().named_parameters()}
    decoder = sum(n for name, n in counts.items() if name.startswith(("decoder", "mask_token")))
    assert sum(counts.values()) == GOLDEN["parameters_b_28"]
    assert decoder / 1e6 == pytest.approx(GOLDEN["parameters_b_28_decoder_m"], abs=5e-4)
    assert (sum(counts.values()) - decoder) / 1e6 == pytest.approx(GOLDEN["parameters_b_28_encoder_m"], abs=5e-4)


def test_flops_of_the_papers_network():
    core = base_on_meta()
    patches = torch.zeros(1, TOKENS, 64, device="meta")
    drop = random_drop(torch.zeros(1, TOKENS, device="meta"), 12)
    assert _gflop(lambda: core.encode(patches)) == pytest.approx(GOLDEN["gflop_b_28_all_tokens"], rel=0.01)
    assert _gflop(lambda: core.predict(patches, drop)) == pytest.approx(GOLDEN["gflop_b_28_at_keep"]["12"], rel=0.01)


def _gflop(call) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def test_the_latent_patch_is_the_papers_at_224():
    assert latent_patch(28, Config().tokens_across) == 4
    assert [latent_patch(side, 7) for side in (4, 7, 8, 16, 32)] == [1, 1, 1, 2, 4]


def test_the_defaults_are_the_papers():
    config = Config()
    assert (config.ratio_start, config.ratio_end, config.ramp, config.schedule) == (0.15, 0.75, 2 / 3, "cosine")
    small = {"encoder": TRUNKS["nano"], "decoder": DECODERS["nano"]}
    optim = Lmd(dataclasses.replace(Lmd.recipe("s", DIGITS), **small), DIGITS).optim(64)
    assert (optim.name, optim.betas, optim.clip_norm, optim.lr_peak) == ("adan", (0.98, 0.92, 0.90), 10.0, 7.5e-5)
    assert lmd().core.decoder_position == -1


def test_betas_that_are_not_the_optimizers_are_refused():
    with pytest.raises(ValueError, match=r"adamw takes 2 betas, not 3: .*adamw 0\.9,0\.95"):
        Config(optimizer="adamw")


def test_the_config_goes_to_json_and_back():
    config = Lmd.recipe("nano", DIGITS)
    assert override(Config(), plain(config)) == config


def test_patches_of_few_numbers_are_not_standardised():
    assert not lmd().core.norm_target  # single latent pixels, four numbers
    assert lmd(norm_least=2).core.norm_target
    assert lmd(DataSpec("x", 1, 28, 10)).core.norm_target  # single latent pixels too, but of sixteen numbers


# -- latents and the VAE -----------------------------------------------------------------------------------------


def test_cached_latents_train_as_the_images_do(images):
    method = lmd()
    latents = method.cached(images)
    assert latents.shape == (16, method.vae.channels, 4, 4)
    cached = method(Batch(None, latents), 0.5, Rng(0)).total
    torch.testing.assert_close(cached, method(Batch(images), 0.5, Rng(0)).total)


def test_no_views_means_no_cache_and_random_crops(images):
    method = lmd(views=0)
    assert method.cached(images) is None and method.augment().crop == (0.2, 1.0)
    assert [lmd(views=v).augment().mirror for v in (1, 2)] == [False, True]


def test_the_vae_is_frozen_and_saved(images):
    method = lmd().train()
    trained = {id(p) for group in method.param_groups() for p in group["params"]}
    assert trained == {id(p) for p in method.core.parameters()}
    method(Batch(images), 0.5, Rng(0)).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.vae.parameters())
    assert not method.vae.training and method.training
    assert any(name.startswith("vae.") for name in method.state_dict())


def test_preparation_trains_the_methods_own_vae():
    method = lmd()
    preparation = method.preparation()
    assert preparation.share == 0.2 and preparation.objective.vae is method.vae
    assert all(p.requires_grad for group in preparation.objective.param_groups() for p in group["params"])
    method.param_groups()
    assert not any(p.requires_grad for p in method.vae.parameters())


def test_a_borrowed_vae_is_not_trained_and_says_so(tmp_path, images):
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=8).save_pretrained(tmp_path)
    method = lmd(vae=str(tmp_path))
    assert method.preparation() is None and lmd().borrowed() == []
    (loan,) = method.borrowed()
    assert str(tmp_path) in loan["what"] and loan["parameters"] == sum(p.numel() for p in method.vae.parameters())
    for step in range(17):  # the sampler's statistics are taken in on some of the steps
        method.train()(Batch(images), 0.5, Rng(0).at(step))
    assert method.sample(2, Rng(0)).shape == (2, 1, 8, 8)


@pytest.mark.skipif(not (WEIGHTS / FILES[0]).is_file(), reason="no TAEF2 weights under HARNESS_DATA")
def test_lmd_on_taef2(images):
    method = lmd(vae="taef2:")
    assert method.core.tokens == 16 and method.preparation() is None
    assert method(Batch(None, method.cached(images)), 0.5, Rng(0)).total.isfinite()
    assert method.reconstruct(images[:2], 0.4, Rng(0)).images.shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("key", "value"), [("ratio_start", 0.0), ("ratio_end", 1.0), ("vae_share", 1.0), ("schedule", "sine")]
)
def test_settings_that_make_no_sense_are_refused(key, value):
    with pytest.raises(HarnessError, match=r"lmd\."):
        override(Config(), {key: value}, "lmd")
