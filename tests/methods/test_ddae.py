"""DDAE as a method: the paper's configurations, sizes, levels and blocks, steps, augmentation, what is refused."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import methods.ddae
from backbones.edm_augment import Warp
from backbones.unet import UnetConfig
from harness.config import override
from harness.data.dataset import load
from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.method import Batch, DataSpec, Tap
from harness.rng import Rng
from harness.study import build
from methods.ddae.method import Config, Ddae

DIGITS = DataSpec("digits", channels=1, size=8, classes=10)
CIFAR = DataSpec("cifar", channels=3, size=32, classes=10)
LEVELS = {"ddpm": torch.tensor([11, 700]), "edm": torch.tensor([0.06, 2.0])}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return to_float(load("digits").fit.images[:8])


def ddae(**changes) -> Ddae:
    torch.manual_seed(0)
    return Ddae(replace(Ddae.recipe("nano", DIGITS), **changes), DIGITS)


def test_a_network_with_the_augmentations_label_is_trained_on_what_it_is_told_of(images, monkeypatch):
    method, seen = ddae(net=replace(Ddae.recipe("nano", DIGITS).net, label=9), warp=1.0), []
    monkeypatch.setattr(Ddae, "loss", lambda self, x, level, eps, labels, warped: seen.append((x, warped)))
    method.pretrain(Batch(images), 0.5, Rng(0))
    ((x, warped),) = seen
    warp = Warp.drawn(8, 1.0, Rng(0).at("augment"))
    assert torch.equal(x, warp.applied(images)) and torch.equal(warped, warp.label())
    assert (x - images).abs().max() > 0.1 and warped.shape == (8, 9)
    monkeypatch.undo()
    total = method.pretrain(Batch(images), 0.5, Rng(0)).total
    total.backward()
    assert total.isfinite() and method.network.label.weight.grad.any()
    assert method.eval().features(images, method.taps()[:1], Rng(0))[0].isfinite().all(), "read without being told"
    with pytest.raises(ValueError, match=r"net\.label is 9"):
        Config(net=replace(Config().net, label=5))


def test_the_defaults_are_the_papers():
    with torch.device("meta"):
        method = Ddae(Config(), CIFAR)
    optim = method.optim(512)
    assert (optim.lr_peak, optim.betas, optim.eps, optim.weight_decay) == (4e-4, (0.9, 0.999), 1e-8, 0.0)
    assert (optim.clip_norm, optim.schedule, optim.warmup) == (1.0, "constant", 13 / 2000)
    assert method.optim(64).lr_peak == 4e-4, "the rate does not follow the batch"
    assert method.augment().mirror and method.augment().crop == (1.0, 1.0)


class Paper(NamedTuple):
    """A configuration of the reference: its parameters, tap, batch, cap of the average, rate and dropout."""

    parameters: int
    tap: str
    batch: int
    ema: float
    lr: float
    dropout: float
    warmup: float


PAPER = {
    "DDPM_ddpm": Paper(35_746_307, "out_6@11", 512, 0.9999, 4e-4, 0.1, 13 / 2000),
    "DDPM_ddpmpp": Paper(56_524_291, "out_6@11", 256, 0.9999, 4e-4, 0.1, 13 / 2000),
    "EDM_ddpm": Paper(35_746_307, "out_7@4", 512, 0.9993, 4e-4, 0.13, 200 / 2000),
    "EDM_ddpmpp": Paper(56_524_291, "out_7@4", 256, 0.9993, 4e-4, 0.13, 200 / 2000),
    "EDM_ddpmpp_aug": Paper(56_525_443, "out_7@4", 512, 0.9993, 8e-4, 0.13, 200 / 4000),
}
FILES = {path.stem: path for path in (Path(methods.ddae.__file__).parent / "paper").glob("*.toml")}


def test_every_configuration_of_the_reference_has_a_study_file():
    assert set(FILES) == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_a_study_file_says_what_the_card_does(name):
    want, study = PAPER[name], build(tomllib.loads(FILES[name].read_text()))
    (cell,) = study.cells()
    config = override(Ddae.recipe(cell.size, CIFAR), study.overrides["ddae"], "ddae")
    with torch.device("meta"):
        method = Ddae(config, CIFAR)
    taps, optim = method.taps(), method.optim(study.train.batch_size)
    assert sum(p.numel() for p in method.parameters()) == want.parameters and str(taps[0]) == want.tap
    assert len(taps) == len(set(taps)) == 3 * method.network.encoder_blocks
    assert {t.noise for t in taps} == ({1, 11, 21} if "DDPM" in name else {3, 4, 5})
    assert (study.train.batch_size, study.train.ema) == (want.batch, want.ema)
    assert (optim.lr_peak, optim.schedule, config.net.dropout) == (want.lr, "constant", want.dropout)
    assert optim.warmup == pytest.approx(want.warmup) and cell.dataset == "cifar10"


@pytest.mark.parametrize(("changes", "passes"), [({}, 50), ({"objective": "edm"}, 35), ({"heun_steps": 4}, 50)])
def test_nano_draws_in_fewer_steps_of_ddim_and_the_papers_of_heun(changes, passes):
    method, calls = ddae(**changes).eval(), []
    method.network.register_forward_hook(lambda *_: calls.append(1))
    method.sample(1, Rng(0))
    assert len(calls) == passes


def test_no_steps_are_refused_before_any_training():
    with pytest.raises(ValueError, match="heun_steps is at least 1"):
        Config(heun_steps=0)


def test_adms_layout_starts_as_adm_and_says_what_was_built():
    method = ddae(layout="adm")
    assert method.config.net == method.network.config and method.config.net.modulation == "scale_shift"
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not method.network(x, torch.tensor([0, 500])).any(), "its last layer starts at zero"
    blocks = method.network.read(x, torch.tensor([0, 500]), {1, 2})
    assert torch.equal(blocks[1], blocks[2]), "and so does that of every block"


def test_level_0_is_no_level():
    for changes in ({"noises": (0,)}, {"noises": (1001,)}, {"noises": (19,), "objective": "edm"}):
        with pytest.raises(ValueError, match="noises are from 1"):
            Config(**changes)


@pytest.mark.parametrize("objective", LEVELS)
def test_features_end_with_their_block_and_levels_share_a_pass(images, objective, monkeypatch):
    method, passes = ddae(objective=objective).eval(), []
    read = method.network.read
    monkeypatch.setattr(
        method.network,
        "read",
        lambda x, t, blocks, add: passes.append((len(x), max(blocks))) or read(x, t, blocks, add),
    )
    low, usual, high = sorted({t.noise for t in method.taps()})
    first, second = method.network.middle + 1, method.network.middle + 2
    taps = [Tap("out_2", low), Tap("out_1", usual), Tap("out_2", high), Tap("out_1", high)]
    together = method.features(images, taps, Rng(0))
    assert sorted(passes) == [(8, first), (16, second)]
    for tap, found in zip(taps, together, strict=True):
        torch.testing.assert_close(found, method.features(images, [tap], Rng(0))[0])
    maps = method.features(images, taps, Rng(0), dense=True)
    for found, pooled in zip(maps, together, strict=True):
        assert found.shape[2] == found.shape[3] > 1
        torch.testing.assert_close(found.mean(dim=(2, 3)), pooled)
    assert not torch.equal(method.features(images, taps[:1], Rng(1))[0], together[0]), "the noise follows the key"


def test_dropout_follows_the_key_and_is_off_in_features(images):
    method = ddae(net=replace(Ddae.recipe("nano", DIGITS).net, dropout=0.5)).train()
    state = torch.get_rng_state()
    one, same, other = (method.pretrain(Batch(images), 0.5, Rng(seed)).total for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())
    x, told = method.noised(images, 11, torch.zeros_like(images))
    dropped, whole = method.network(x, told), method.eval().network(x, told)
    assert not torch.allclose(dropped, whole)


def test_sides_that_the_levels_do_not_divide_are_refused():
    with pytest.raises(HarnessError, match="28 px, which 3 halvings"):
        Ddae(Config(net=UnetConfig(width=8, groups=4, blocks=1)), DataSpec("mnist", 1, 28, 10))


@pytest.mark.parametrize("side", [8, 28, 32, 64, 96, 224])
@pytest.mark.parametrize("size", ["nano", "s"])
def test_recipes_fit_every_side(size, side):
    spec = DataSpec("any", 3, side, 10)
    with torch.device("meta"):
        method = Ddae(Ddae.recipe(size, spec), spec)
    bottom = side // max(place.factor for place in method.network.places.values())
    assert 2 <= bottom <= 8 or side == 28


@pytest.mark.parametrize("side", [32, 64, 96, 224])
def test_sizes_match_maes_in_parameters(side):
    from methods.mae.method import Mae

    spec = DataSpec("images", 3, side, 10)
    for size in Mae.sizes:
        with torch.device("meta"):
            ours, theirs = Ddae(Ddae.recipe(size, spec), spec), Mae(Mae.recipe(size, spec), spec)
        counts = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, theirs)]
        assert abs(counts[0] / counts[1] - 1) < 0.15, size
