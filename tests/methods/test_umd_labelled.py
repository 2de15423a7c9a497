"""UMD's generative fine-tune: the card's recipe, its start, its labels, its guided samples."""

from __future__ import annotations

import pytest
import torch

from harness.errors import HarnessError
from harness.method import Batch
from harness.rng import Rng
from methods.umd.labelled import LABEL_DROP, LabelledUmd
from methods.umd.method import Config, Umd
from tests.methods.test_umd import DIGITS, images, small, trained


def test_the_labelled_recipe_is_the_cards():
    """Section 6 of the card."""
    old = trained(small())
    new = old.labelled()
    c = new.config
    assert new.sees_labels and not old.sees_labels and LABEL_DROP == 0.1
    assert (c.no_noise, c.mask_ratio, c.mask_ratio_noisy, c.crop) == (0.05, old.config.mask_ratio, 0.0, (0.95, 1.0))
    assert (c.betas, c.weight_decay, c.warmup, c.classes) == ((0.9, 0.999), 0.0, 0.04, DIGITS.classes)
    with torch.device("meta"):
        paper = LabelledUmd.of(Umd(Config(), DIGITS))
    assert paper.optim(256).lr_peak == pytest.approx(1.5e-4)


def test_the_fine_tune_starts_from_the_weights_it_has():
    old = trained(small())
    new = old.labelled()
    state = new.state_dict()
    fresh = set(state) - set(old.state_dict())
    assert fresh and all(".label_" in f".{name.removeprefix('network.')}" for name in fresh)
    assert all(torch.equal(state[name], value) for name, value in old.state_dict().items())
    assert all(p.requires_grad for p in new.parameters())


def test_labels_are_for_noised_images_only_and_one_in_ten_is_dropped(monkeypatch):
    new, seen = trained(small()).labelled(), []
    condition = new.network.condition
    monkeypatch.setattr(new.network, "condition", lambda time, labels: seen.append(labels) or condition(time, labels))
    labels = torch.arange(400) % 10
    loss = new(Batch(images(DIGITS, 8).repeat(50, 1, 1, 1), labels=labels), 0.0, Rng(0)).total
    noisy, clean = seen[0][:380], seen[0][380:]
    assert (clean == 10).all(), "one in twenty is clean, and has none"
    gone = noisy == 10
    assert torch.equal(noisy[~gone], labels[:380][~gone]) and 15 < gone.sum() < 65
    loss.backward()
    assert new.network.label_table.weight.grad[:10].any(dim=1).all()
    with pytest.raises(HarnessError, match="a batch without labels"):
        new(Batch(images(DIGITS, 8)), 0.0, Rng(0))


def test_fine_tuned_samples_are_guided_as_told():
    method, labels = trained(small()).labelled(), torch.tensor([0, 2])
    torch.nn.init.normal_(method.network.label_table.weight)
    plain, own, guided = (method.sample(2, Rng(0), labels, steps=3, guidance=g) for g in (1.0, None, 2.0))
    assert plain.equal(own) and not plain.equal(guided)


def test_a_table_with_too_few_rows_is_refused():
    with pytest.raises(HarnessError, match=r"umd\.classes=2 for labels"):
        small(classes=2).labelled()
