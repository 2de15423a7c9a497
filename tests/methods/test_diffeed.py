"""DifFeed: two passes of DDAE's frozen network, the second with what the first found."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from backbones.heads import Measures
from backbones.unet import NETS
from evals import attentive
from harness.data.dataset import load
from harness.data.pixels import to_float
from harness.evaluation import Subject, evaluate
from harness.method import DataSpec
from harness.rng import Rng
from methods.ddae.method import Config, Ddae
from methods.diffeed.method import DifFeed
from tests.evals.kit import context

DIGITS = DataSpec("digits", channels=1, size=8, classes=10)
MEASURES = Measures(width=16, depth=1, heads=2, side=4)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return to_float(load("digits").fit.images[:8])


@pytest.fixture
def method() -> DifFeed:
    torch.manual_seed(0)
    return DifFeed(DifFeed.recipe("nano", DIGITS), DIGITS).eval().requires_grad_(False)


def sources(config: Config, side: int) -> tuple[dict[int, int], int]:
    """Decoder blocks and their mirrors, and the block read out."""
    with torch.device("meta"):
        head = DifFeed(config, DataSpec("wide", 3, side, 1000)).feedback_head(1000, Measures())
    return head.feedback.sources, head.readout


def test_the_pre_training_is_ddaes():
    assert DifFeed.pretrained_as == "ddae" and DifFeed.Config is Ddae.Config
    assert DifFeed.recipe("s", DIGITS) == Ddae.recipe("s", DIGITS)
    verbs = ("taps", "features", "sample", "pretrain", "maps", "fusion")
    assert all(getattr(DifFeed, verb) is getattr(Ddae, verb) for verb in verbs)


def test_what_feeds_back_is_the_cards():
    """Card, sections 3.6 and 7.5."""
    assert sources(Config(), 32) == ({15: 11, 18: 8, 21: 5, 24: 2}, 19)
    adm = Config(net=NETS["adm256"], layout="adm")
    assert sources(adm, 256) == ({21: 17, 24: 14, 27: 11, 30: 8, 33: 5, 36: 2}, 24)


def test_both_passes_see_the_same_and_no_weight_of_the_network_learns(method, images, monkeypatch):
    head, seen = method.feedback_head(10, MEASURES).train(), []
    read = method.network.read

    def watched(x, level, blocks, add=None):
        seen.append((x, level, torch.is_grad_enabled(), add))
        return read(x, level, blocks, add)

    monkeypatch.setattr(method.network, "read", watched)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    head(images, Rng(0)).square().sum().backward()
    (x, level, learns, nothing), (x2, level2, learns2, maps) = seen
    assert x is x2 and level is level2 and (learns, learns2) == (False, True) and nothing is None and maps
    assert all(p.grad is not None and p.grad.any() for p in head.feedback.parameters())
    assert all(p.grad is None for p in method.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    assert not method.training


def test_feedback_changes_what_is_read_and_noise_follows_its_key(method, images):
    head = method.feedback_head(10, MEASURES).eval()
    first = head(images, Rng(0))
    assert torch.equal(first, head(images, Rng(0))) and not torch.equal(first, head(images, Rng(1)))
    for layer in head.feedback.layers:
        torch.nn.init.zeros_(layer[0].weight)  # norm and ReLU of nothing are nothing
    assert not torch.equal(first, head(images, Rng(0)))
    x, level = method._seen(images, Rng(0))
    plain = method.network.read(x, level, [head.readout])[head.readout]
    assert torch.equal(head(images, Rng(0)), head.head([{"map": plain}]))


def test_the_eval_trains_it_and_samples_stay_ddaes(tmp_path, method):
    small = dataclasses.replace(attentive.recipe("nano"), images=64, select_images=32, epochs=1, width=16)
    config = dataclasses.replace(small, feedback_images=64, feedback_epochs=1)
    before = method.sample(2, Rng(0), steps=2)
    found = evaluate("attentive", context(tmp_path, method, load("digits")), config, subject=Subject(reference="toy"))
    assert found.numbers["feedback_top1"].n == load("digits").test_n
    assert found.chosen["feedback"]["parameters"] > found.chosen["attention"]["parameters"]
    assert torch.equal(before, method.sample(2, Rng(0), steps=2))
