"""What the two masked autoencoders share: drawing in rounds, what is counted, and mixed precision."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from harness.data.dataset import load
from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.method import Batch, DataSpec, Method
from harness.rng import Rng
from harness.train.flops import any_seed, train_flop_per_image
from methods.lmd.method import Lmd
from methods.mae.method import Mae

DIGITS = DataSpec("digits", channels=1, size=8, classes=10)
pytestmark = pytest.mark.parametrize("method", [Mae, Lmd], ids=lambda method: method.__name__)


def build(method: type[Method], **changes) -> Method:
    torch.manual_seed(0)
    return method(dataclasses.replace(method.recipe("nano", DIGITS), **changes), DIGITS)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return to_float(load("digits").fit.images[:16])


@pytest.mark.parametrize("steps", [None, 3])
def test_steps_are_the_rounds_of_drawing(method, images, steps):
    built, passes = build(method, sampler_every=1), []
    built(Batch(images), 0.5, Rng(0))
    built.core.norm.register_forward_hook(lambda *_: passes.append(1))
    built.sample(1, Rng(0), steps=steps)
    assert len(passes) == (steps or method.Config().rounds)


def test_no_rounds_and_labels_are_refused(method, images):
    built = build(method, sampler_every=1)
    built(Batch(images), 0.5, Rng(0))
    with pytest.raises(HarnessError, match="0 rounds"):
        built.sample(1, Rng(0), steps=0)
    with pytest.raises(HarnessError, match=f"labels given to {method.__name__.upper()}"):
        built.sample(1, Rng(0), labels=torch.tensor([3]))


def test_the_samplers_update_is_in_no_flop_count(method, images):
    """It is charged in time. The counted step is the same for every seed and has no update; an update would show."""
    batch = Batch(images)
    with_sampler, without, always = (
        train_flop_per_image(build(method, sampler_every=every).train(), batch, Rng(7)) for every in (8, 0, 1)
    )
    assert with_sampler == without < always
    assert {any_seed(Rng(seed, ("train",))) for seed in range(9)} == {any_seed(Rng(0))}


def test_bfloat16_autocast_keeps_the_loss(method, images):
    built, batch = build(method), Batch(images)
    full = built(batch, 0.5, Rng(0)).total
    with torch.autocast("cpu", torch.bfloat16):
        half = built(batch, 0.5, Rng(0)).total
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.02, atol=0)
