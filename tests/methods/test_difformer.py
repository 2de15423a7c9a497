"""DifFormer and the ADM layout it can read: which maps, which objective, whose weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from backbones.adm_unet import adm_like
from backbones.unet import NETS
from evals import attentive
from harness.data.dataset import load
from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.evaluation import Subject, evaluate
from harness.method import Batch, DataSpec, Tap
from harness.rng import Rng
from methods.ddae.method import Config, Ddae
from methods.difformer.method import DifFormer
from tests.evals.kit import context

DIGITS = DataSpec("digits", channels=1, size=8, classes=10)
COLOUR = DataSpec("colour", channels=3, size=32, classes=10)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return to_float(load("digits").fit.images[:8])


def difformer(**changes) -> DifFormer:
    torch.manual_seed(0)
    return DifFormer(dataclasses.replace(DifFormer.recipe("nano", DIGITS), **changes), DIGITS).eval()


def listed(config: Config, data: DataSpec = COLOUR) -> list[list[str]]:
    with torch.device("meta"):
        method = DifFormer(config, data)
    return [[str(tap) for tap in level] for level in method.fusion()]


def test_the_pre_training_is_ddaes():
    assert DifFormer.pretrained_as == "ddae" and DifFormer.Config is Ddae.Config
    for size in DifFormer.sizes:
        assert DifFormer.recipe(size, COLOUR) == Ddae.recipe(size, COLOUR)
    # What linear probe, kNN and samples ask of a method is DDAE's own, so that they are evaluated once for both.
    assert all(getattr(DifFormer, verb) is getattr(Ddae, verb) for verb in ("taps", "features", "sample", "pretrain"))


def test_what_is_fused_is_the_cards():
    """Card, section 7.5: blocks 13, 19, 21 of the 35.7M network; section 7.4: 19, 24, 30 of ADM."""
    assert listed(Config())[1] == ["out_0@11", "out_6@11", "out_8@11"]
    assert [level[0] for level in listed(Config())] == ["out_0@7", "out_0@11", "out_0@22"]
    adm = listed(Config(net=NETS["adm256"], layout="adm"), DataSpec("wide", 3, 256, 1000))
    assert adm == [[f"out_{k}@{t}" for k in (0, 5, 11)] for t in (90, 150, 300)]
    assert [level[0] for level in listed(Config(objective="edm"))] == ["out_0@3", "out_0@4", "out_0@5"]


def test_maps_of_all_it_fuses_come_from_one_pass(images, monkeypatch):
    method, passes = difformer(), []
    read = method.network.read
    monkeypatch.setattr(method.network, "read", lambda *args, **more: passes.append(1) or read(*args, **more))
    taps = [tap for level in method.fusion() for tap in level]
    found = dict(zip(taps, method.features(images, taps, Rng(0), dense=True), strict=True))
    assert len(passes) == 1 and set(taps) <= set(method.maps())
    middle, best = found[Tap("out_0", 7)], found[Tap(f"out_{method.usual_block()}", 11)]
    assert middle.shape[-1] <= best.shape[-1] and not torch.equal(middle, found[Tap("out_0", 22)])
    with pytest.raises(HarnessError, match="no tap 'out_0@8'"):
        method.features(images, [Tap("out_0", 8)], Rng(0))


def test_the_eval_reads_it_whole(tmp_path):
    config = dataclasses.replace(attentive.recipe("nano"), images=64, select_images=32, epochs=1, width=16)
    found = evaluate(
        "attentive", context(tmp_path, difformer(), load("digits")), config, subject=Subject(reference="toy")
    )
    assert found.chosen["fusion_taps"] == [[str(tap) for tap in level] for level in difformer().fusion()]
    assert set(found.numbers) == {"linear_top1", "attention_top1", "fusion_top1"}


# -- over ADM's layout ------------------------------------------------------------------------------------------------


def test_the_layout_is_adms():
    assert adm_like(NETS["adm256"]) == NETS["adm256"]
    small = difformer(layout="adm").network.config
    assert (small.modulation, small.code, small.read, small.resample) == ("scale_shift", "adm", "after", "residual")
    assert small.width == DifFormer.recipe("nano", DIGITS).net.width
    with pytest.raises(ValueError, match="its own objective"):
        Config(layout="adm", objective="edm")


def test_adm_learns_its_variance_and_is_told_the_integer_step(images, monkeypatch):
    method, told = difformer(layout="adm").train(), []
    forward = method.network.forward
    monkeypatch.setattr(method.network, "forward", lambda x, level: told.append(level) or forward(x, level))
    loss = method.pretrain(Batch(images), 0.0, Rng(3))
    assert set(loss.terms) == {"mse", "vb"} and loss.total.item() == pytest.approx(sum(loss.terms.values()).item())
    assert told[0].dtype == torch.int64
    seen, level = method.noised(images, 150, torch.zeros_like(images))
    assert level.tolist() == [150] * 8
    torch.testing.assert_close(seen, 0.886503 * images, atol=1e-6, rtol=1e-5)  # 0-based: card, section 2.3


def test_adm_draws(images):
    method = difformer(layout="adm")
    first, again = (method.sample(2, Rng(1), steps=3) for _ in range(2))
    assert torch.equal(first, again) and first.abs().max() <= 1 and first.shape == (2, 1, 8, 8)
