"""DiT against its card: the reference's numbers in float64, its sizes, its schedule, its sampler."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from backbones.diffusion import Diffusion
from backbones.dit_vit import DitVit
from backbones.learned_variance import LearnedVariance, ancestral, implied
from backbones.sizes import TRUNKS, Trunk
from harness.data.dataset import load
from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.method import Batch, DataSpec, Tap
from harness.rng import Rng
from methods.dit.method import Config, Dit

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "dit.json").read_text())
PRINTED = 2e-9  # relative; ten printed digits
DIGITS = DataSpec("digits", channels=1, size=8, classes=10)
K, LABELS = torch.tensor([40, 700]), torch.tensor([3, 7])

# The reference's names in sorted order, as its golden run filled them, and ours for the same tensor.
PARTS = ("attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2")
BLOCK = {
    "modulation.bias": "adaLN_modulation.1.bias",
    "modulation.weight": "adaLN_modulation.1.weight",
    **{f"{part}.{kind}": f"{part}.{kind}" for part in PARTS for kind in ("bias", "weight")},
}
THEIRS = {
    **{f"blocks.{i}.{ours}": f"blocks.{i}.{theirs}" for i in (0, 1) for ours, theirs in BLOCK.items()},
    "final_modulation.bias": "final_layer.adaLN_modulation.1.bias",
    "final_modulation.weight": "final_layer.adaLN_modulation.1.weight",
    "head.bias": "final_layer.linear.bias",
    "head.weight": "final_layer.linear.weight",
    **{f"time_mlp.{i}.{kind}": f"t_embedder.mlp.{i}.{kind}" for i in (0, 2) for kind in ("bias", "weight")},
    "embed.bias": "x_embedder.proj.bias",
    "embed.weight": "x_embedder.proj.weight",
    "label_table.weight": "y_embedder.embedding_table.weight",
}


def waves(scale: float, rate: float, phase: float, wave=np.sin) -> torch.Tensor:
    return torch.from_numpy((scale * wave(rate * np.arange(512) + phase)).reshape(2, 4, 8, 8))


@pytest.fixture(scope="module")
def golden() -> Dit:
    """The card's toy in float64, filled by its rule: 0.1 sin(0.37 j + i) for the i-th of the sorted names."""
    config = Config(vae="none", patch=2, trunk=Trunk(32, 2, 4), classes=10)
    torch.set_default_dtype(torch.float64)  # in which the tables of the schedule are kept
    try:
        method = Dit(config, DataSpec("golden", channels=4, size=8, classes=10)).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    method.network.position = reference_positions(32, 4)
    ours = {theirs: name for name, theirs in THEIRS.items()}
    parameters = dict(method.network.named_parameters())
    assert set(THEIRS) == set(parameters)
    for i, theirs in enumerate(sorted(ours)):
        parameter = parameters[ours[theirs]]
        values = torch.from_numpy(0.1 * np.sin(0.37 * np.arange(parameter.numel()) + i))
        if theirs == "x_embedder.proj.weight":  # a convolution's [D, C, p, p]; ours reads (row, column, channel)
            values = values.view(32, 4, 2, 2).permute(0, 2, 3, 1).reshape(32, 16)
        parameter.data = values.view(parameter.shape).clone()
    return method


def reference_positions(width: int, side: int) -> torch.Tensor:
    from backbones.tokens import sincos_2d

    return sincos_2d(width, side, torch.float64)


@pytest.fixture(scope="module")
def noised(golden) -> torch.Tensor:
    return golden.diffusion.noised(waves(0.8, 0.11, 0.5), K, waves(1.3, 0.23, 0.1, np.cos))


def near(found: torch.Tensor | float, wanted) -> None:
    values = found.tolist() if isinstance(found, torch.Tensor) else found
    assert values == pytest.approx(wanted, rel=PRINTED, abs=1e-10)


# -- golden -----------------------------------------------------------------------------------------------------------


def test_noising_and_output_equal_the_reference(golden, noised):
    near(noised.flatten()[:3], GOLDEN["noised"])
    found = golden.network(noised, K, LABELS)
    near(found.flatten()[:3], GOLDEN["output"]["first"])
    near(found.abs().mean(), GOLDEN["output"]["mean_abs"])
    near(found.sum(), GOLDEN["output"]["sum"])


@pytest.mark.parametrize(
    ("levels", "mse", "vb"), [([40, 700], GOLDEN["mse"], GOLDEN["vb"]), ([0, 999], *GOLDEN["ends"].values())]
)
def test_both_losses_equal_the_reference(golden, levels, mse, vb):
    """Level 0 takes the likelihood of grey levels, every other the divergence."""
    x, eps, k = waves(0.8, 0.11, 0.5), waves(1.3, 0.23, 0.1, np.cos), torch.tensor(levels)
    for i in range(2):
        terms = golden.objective(x[i : i + 1], k[i : i + 1], eps[i : i + 1], LABELS[i : i + 1]).terms
        near(terms["mse"], mse[i])
        assert terms["vb"].item() == pytest.approx(vb[i], rel=1e-8)


def test_the_variational_term_of_an_image_does_not_depend_on_its_neighbours_levels(golden, noised):
    """Images at level 0 are taken out for their likelihood, and put back where they were."""
    x, k = waves(0.8, 0.11, 0.5).repeat(3, 1, 1, 1), torch.tensor([0, 40, 0, 700, 999, 0])
    x0, seen = x + 0.1, noised.repeat(3, 1, 1, 1)
    v = (0.5 * x).requires_grad_()
    found = golden.reverse.loss(x, x0, seen, v, k)
    (gradient,) = torch.autograd.grad(found.sum(), v)
    for i in range(6):
        one = v[i : i + 1].detach().requires_grad_()
        alone = golden.reverse.loss(x[i : i + 1], x0[i : i + 1], seen[i : i + 1], one, k[i : i + 1])
        assert torch.equal(alone[0], found[i])
        assert torch.equal(torch.autograd.grad(alone.sum(), one)[0][0], gradient[i])


def test_the_loss_is_their_plain_sum(golden):
    loss = golden.objective(waves(0.8, 0.11, 0.5), K, waves(1.3, 0.23, 0.1, np.cos), LABELS)
    near(loss.total, GOLDEN["loss"])


def test_the_reverse_step_equals_the_reference(golden, noised):
    eps, v = golden.network(noised, K, LABELS).chunk(2, dim=1)
    x0 = implied(golden.diffusion, noised, eps, K)
    near(x0.abs().mean(), GOLDEN["x0_mean_abs"])
    near(golden.reverse.posterior_mean(x0, noised, K).flatten()[:3], GOLDEN["posterior_mean"])
    near(golden.reverse.log_variance(v, K).flatten()[:3], GOLDEN["log_variance"])
    assert golden.reverse.low[:2].tolist() == pytest.approx([GOLDEN["low_ends"]] * 2, rel=1e-8)


def test_features_equal_the_reference(golden, noised):
    network = golden.network
    tokens = network.blocks.read(network.tokens(noised), network.condition(K), {1, 2})
    for block in (1, 2):
        near(tokens[block].mean(dim=1)[0, :3], GOLDEN["features"][f"block{block}"])
    near(tokens[2].mean(dim=1).abs().mean(), GOLDEN["features"]["block2_mean_abs"])


def test_guidance_equals_the_reference_in_the_channels_it_guides(golden, noised):
    found = golden.network.guided(noised[:1], K[:1], LABELS[:1], 1.5)
    near(found[0, 0].flatten()[:3], GOLDEN["guided_first_three_channels"])


def test_ddim_equals_the_reference(golden):
    """The string "ddim10" keeps 0, 100 ... 900; the step below level 0 is the estimate itself."""
    levels = [*range(900, -1, -100)]
    found = golden.diffusion.ddim(
        lambda x, k: 0.3 * x + 0.1, 1.5 * waves(0.8, 0.11, 0.5), levels, None, 0.0, clip=False
    )
    near(found.flatten()[:3], GOLDEN["ddim10"]["first"])
    near(found.abs().mean(), GOLDEN["ddim10"]["mean_abs"])


# -- the schedule and the sampler -------------------------------------------------------------------------------------


def test_respaced_levels_and_their_betas():
    levels = Diffusion("linear").respaced(250)[::-1]
    assert len(levels) == 250 and [*levels[:6], *levels[-3:]] == GOLDEN["respaced_250"]
    assert Diffusion("linear").respaced(10)[::-1] == GOLDEN["respaced_10"]
    assert Diffusion("linear").respaced(21)[::-1] == GOLDEN["respaced_21"], "places are added up, as there"
    assert Diffusion("linear").respaced(1) == [999]
    high = LearnedVariance(Diffusion("linear").alpha_bar[levels]).high
    betas = [math.exp(high[i]) for i in (0, 1, -1)]
    assert betas == pytest.approx(GOLDEN["respaced_250_betas"], rel=1e-5)
    with pytest.raises(HarnessError, match="sampling steps"):
        Diffusion("linear").respaced(1001)


@pytest.mark.parametrize("clip", [True, False])
def test_an_ancestral_step_equals_diffusers(clip):
    """diffusers' DDPM with a learned range of variances, over the same levels and the same noise."""
    from diffusers import DDPMScheduler

    diffusion = Diffusion("linear")
    levels = diffusion.respaced(20)
    theirs = DDPMScheduler(beta_schedule="linear", variance_type="learned_range", clip_sample=clip)
    theirs.set_timesteps(timesteps=levels)
    x = start = waves(1.0, 1.7, 0.3).float()

    def out(x: torch.Tensor, k: int) -> torch.Tensor:
        return torch.cat([0.3 * x + 0.1, 0.5 * torch.sin(x + k)], dim=1)

    def draws(i: int) -> torch.Generator:
        return torch.Generator().manual_seed(i)

    for i, level in enumerate(levels):
        x = theirs.step(out(x, level), level, x, generator=draws(i)).prev_sample
    noise = [torch.randn(start.shape, generator=draws(i)) for i in range(20)]
    ours = ancestral(diffusion, out, start, levels, lambda i: noise[i], clip)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


# -- the network ------------------------------------------------------------------------------------------------------


def on_meta(size: str, patch: int, classes: int = 1000) -> DitVit:
    with torch.device("meta"):
        return DitVit(32, 4, 8, patch, *TRUNKS[size], classes=classes)


@pytest.mark.parametrize("size", GOLDEN["parameters_m"])
def test_parameters_are_the_papers(size):
    count = sum(p.numel() for p in on_meta(size, 2).parameters())
    # The card counts the fixed position table too.
    assert (count + 256 * TRUNKS[size].width) / 1e6 == pytest.approx(GOLDEN["parameters_m"][size], abs=6e-3)


@pytest.mark.parametrize("size", GOLDEN["gmac"])
@pytest.mark.parametrize(("place", "patch"), [(0, 8), (1, 4), (2, 2)])
def test_cost_is_the_papers(size, place, patch):
    """The paper's "Gflops" are multiply-adds: half of what the counter gives."""
    network = on_meta(size, patch)
    x, k = torch.zeros(1, 4, 32, 32, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(x, k)
    assert counter.get_total_flops() / 2e9 == pytest.approx(GOLDEN["gmac"][size][place], rel=0.01, abs=0.005)


def test_at_initialisation_the_output_is_zero_and_every_block_the_identity():
    torch.manual_seed(0)
    network = DitVit(8, 3, 6, 2, 32, 2, 4)
    x, k = torch.randn(2, 3, 8, 8), torch.tensor([3, 500])
    assert not network(x, k).any()
    seen = network.blocks.read(network.tokens(x), network.condition(k), {1, 2})
    assert torch.equal(seen[2], seen[1]) and torch.equal(seen[1], network.tokens(x))


# -- the method -------------------------------------------------------------------------------------------------------


def dit(**changes) -> Dit:
    torch.manual_seed(0)
    return Dit(dataclasses.replace(Dit.recipe("nano", DIGITS), **changes), DIGITS)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return to_float(load("digits").fit.images[:8])


def test_the_defaults_are_the_papers():
    optim = Config()
    assert (optim.lr, optim.betas, optim.weight_decay, optim.warmup, optim.rate) == (
        1e-4,
        (0.9, 0.999),
        0.0,
        0.0,
        "constant",
    )
    large = Dit.recipe("s", DIGITS)
    with torch.device("meta"):
        method = Dit(large, DIGITS)
    assert method.optim(64).lr_peak == method.optim(256).lr_peak == 1e-4, "the rate does not follow the batch"


def test_the_mean_learns_nothing_from_the_variational_term(images):
    """Of the variational term alone, the output's variance channels have a gradient and its noise channels none."""
    method = dit()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.02 * torch.sin(torch.arange(p.numel(), dtype=torch.float32)).view(p.shape))
    k, eps = torch.full((8,), 300), Rng(0).normal("eps", images.shape)
    noised = method.diffusion.noised(images, k, eps)
    found = method.network(noised, k).detach().requires_grad_()
    _, vb = method.reverse.hybrid(method.diffusion, images, noised, found, eps, k)
    (gradient,) = torch.autograd.grad(vb.sum(), found)
    assert not gradient[:, :1].any() and gradient[:, 1:].any()


def test_every_block_and_level_can_be_read_in_one_pass_a_level(images, monkeypatch):
    method, passes = dit().eval(), []
    read = method.network.blocks.read
    monkeypatch.setattr(method.network.blocks, "read", lambda *args: passes.append(1) or read(*args))
    taps = method.taps()
    found = method.features(images, taps, Rng(0))
    assert len(taps) == 4 * 5 == len(found) and len(passes) == 5
    assert [str(tap) for tap in taps[:4]] == ["block2", "block2@40", "block3", "block3@40"]
    with pytest.raises(HarnessError, match="no tap 'block9'"):
        method.features(images, [Tap("block9")], Rng(0))


def test_any_level_can_be_read(images):
    """Among them those at which DDAE's authors probed a DiT (card ddae, section 8)."""
    method = dit(noises=(81, 121)).eval()
    assert [str(tap) for tap in method.taps()[:4]] == ["block2", "block2@121", "block3", "block3@121"]
    clean, light = method.features(images, [Tap("block2"), Tap("block2", 81)], Rng(0))
    assert light.isfinite().all() and not torch.equal(clean, light)
    assert {tap.noise for tap in dit(noises=()).taps()} == {None} and len(dit(noises=(7,)).fusion()) == 2
    for odd in ((40, 10), (10, 10), (1000,), (-1,)):
        with pytest.raises(ValueError, match="rising"):
            Config(noises=odd)


def test_fusion_reads_the_later_blocks_at_three_levels():
    listed = [[str(tap) for tap in level] for level in dit().fusion()]
    assert listed[0] == ["block2", "block3", "block4"]
    assert [level[0] for level in listed[1:]] == ["block2@40", "block2@120"]


def test_fewer_steps_and_labels(images):
    method = dit().eval()
    with pytest.raises(HarnessError, match="labels given to a DiT"):
        method.sample(2, Rng(0), labels=torch.tensor([1, 2]))
    calls = []
    method.network.register_forward_hook(lambda *_: calls.append(1))
    for steps in (7, 1):
        calls.clear()
        assert method.sample(2, Rng(0), steps=steps).isfinite().all()
        assert len(calls) == steps


def test_a_diffusers_vaes_latents_are_scaled_and_its_samples_scaled_back(tmp_path, images):
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=8).save_pretrained(tmp_path)
    decoded = []
    for scale in (0.18215, 1.0):
        method = dit(vae=str(tmp_path), patch=1, latent_scale=scale).eval()
        assert len(method.borrowed()) == 1
        torch.testing.assert_close(method._seen(images), method.vae.encode(images) * scale)
        method.vae.decode = lambda latents: decoded.append(latents) or torch.zeros(2, 1, 8, 8)
        method.sample(2, Rng(0), steps=2)
    torch.testing.assert_close(decoded[0] * 0.18215, decoded[1])
    own = dit(vae="train", patch=1).eval()
    torch.testing.assert_close(own._seen(images), own.vae.encode(images))


def test_on_latents_of_its_own_vae(images):
    method = dit(vae="train", patch=1)
    assert method.preparation() is not None and method.borrowed() == []
    latents = method.eval().cached(images)
    assert latents.shape == (8, 4, 4, 4)
    groups = method.train().param_groups()
    assert not {id(p) for g in groups for p in g["params"]} & {id(p) for p in method.vae.parameters()}
    assert method.pretrain(Batch(None, latents), 0.5, Rng(0)).total.isfinite()
    drawn = method.eval().sample(2, Rng(0), steps=3)
    assert drawn.shape == (2, 1, 8, 8) and drawn.abs().max() <= 1


def test_features_cost_no_more_than_the_blocks_they_are_read_after(golden):
    """Reading the first block leaves the others out, and changes nothing of what is read."""
    from harness.train.flops import count

    images = waves(0.8, 0.11, 0.5)
    one, both = [Tap("block1", 40)], [Tap("block1", 40), Tap("block2", 40)]
    assert torch.equal(golden.features(images, one, Rng(1))[0], golden.features(images, both, Rng(1))[0])
    cost = [count(lambda taps=taps: golden.features(images, taps, Rng(1))) for taps in (one, both)]
    assert cost[0] < 0.7 * cost[1]
