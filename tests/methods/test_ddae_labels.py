"""DDAE with labels: what reaches the loss, what features never see, what samples are of, where a fine-tune starts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.data.dataset import load
from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.method import Batch
from harness.rng import Rng
from methods.ddae.method import Ddae
from tests.methods.test_ddae import DIGITS, ddae

KINDS = {"ddpm": {}, "edm": {"objective": "edm"}, "adm": {"layout": "adm"}}
CLASSES = torch.tensor([0, 3, 3, 5, 7, 7, 8, 9])


@pytest.fixture(scope="module")
def images() -> Tensor:
    return to_float(load("digits").fit.images[:8])


def shaken(kind: str = "ddpm", **changes) -> Ddae:
    """Off its initialisation, where ADM's layout lets nothing through."""
    method = ddae(**KINDS[kind], **changes)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.05 * torch.sin(torch.arange(p.numel(), dtype=torch.float32)).view(p.shape))
    return method


@pytest.mark.parametrize("kind", KINDS)
def test_labels_reach_the_loss_and_their_own_rows_of_the_table(images, kind):
    method = shaken(kind, labels=True, label_drop=0.0)
    table = method.network.unet.class_embedding.weight
    assert method.sees_labels and len(table) == 11
    one, other = (method(Batch(images, labels=y), 0.5, Rng(0)).total for y in (CLASSES, CLASSES.flip(0)))
    assert one != other
    one.backward()
    rows = table.grad.any(dim=1).nonzero().flatten()
    assert rows.tolist() == [0, 3, 5, 7, 8, 9], "the row of no label among those that are not met"
    with pytest.raises(HarnessError, match="a batch without labels"):
        method(Batch(images), 0.5, Rng(0))


def test_labels_are_dropped_as_often_as_the_config_says(images):
    method = ddae(labels=True, label_drop=0.3)
    seen = []
    method.network.register_forward_pre_hook(lambda _, __, words: seen.append(words["classes"]), with_kwargs=True)
    many = images[:1].expand(200, -1, -1, -1)
    with torch.no_grad():
        method(Batch(many, labels=torch.full((200,), 4)), 0.5, Rng(0))
    assert set(seen[0].tolist()) == {4, 10} and (seen[0] == 10).double().mean() == pytest.approx(0.3, abs=0.1)


def test_label_free_pre_training_has_no_table_and_reads_no_labels(images):
    method = ddae()
    assert not method.sees_labels and not method.classes
    with_, without = (method(Batch(images, labels=y), 0.5, Rng(0)).total for y in (CLASSES, None))
    assert torch.equal(with_, without)
    with pytest.raises(HarnessError, match="without a table"):
        method.eval().sample(2, Rng(0), labels=torch.tensor([0, 1]))


def test_features_are_those_of_no_label(images):
    method = ddae(labels=True).eval()
    table, taps = method.network.unet.class_embedding.weight, method.taps()[:2]
    before = method.features(images, taps, Rng(0))
    with torch.no_grad():
        table[:-1] += 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, method.features(images, taps, Rng(0)), strict=True))
    with torch.no_grad():
        table[-1] += 1.0
    assert not torch.equal(before[0], method.features(images, taps, Rng(0))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_labels_and_guidance(kind):
    method = shaken(kind, labels=True, guidance=2.0).eval()

    def drawn(*classes: int, **words: float) -> Tensor:
        return method.sample(2, Rng(0), torch.tensor(classes), steps=2, **words)

    plain, own = drawn(1, 7, guidance=1.0), drawn(1, 7)
    assert torch.equal(own, drawn(1, 7, guidance=2.0)) and not torch.equal(own, plain)
    assert not torch.equal(plain[1], drawn(1, 2, guidance=1.0)[1]) and torch.equal(
        plain[0], drawn(1, 2, guidance=1.0)[0]
    )
    assert plain.shape == (2, 1, 8, 8) and own.abs().max() <= 1


def test_guidance_goes_the_way_from_no_label_to_the_label_and_keeps_its_variance(images):
    method = shaken("adm", labels=True).eval()
    t, none = torch.full((8,), 300), torch.full((8,), 10)
    with torch.no_grad():
        led, free = (method.network(images, t, classes=y) for y in (CLASSES, none))
        found = method.network.guided(images, t, CLASSES, 1.5)
    torch.testing.assert_close(found[:, :1], free[:, :1] + 1.5 * (led - free)[:, :1])
    torch.testing.assert_close(found[:, 1:], led[:, 1:])


def test_without_a_choice_every_class_is_drawn():
    method, seen = ddae(labels=True).eval(), []
    method.network.register_forward_pre_hook(lambda _, __, words: seen.append(words["classes"]), with_kwargs=True)
    method.sample(64, Rng(0), steps=1)
    assert set(seen[0].tolist()) == set(range(10))


@pytest.mark.parametrize("kind", KINDS)
def test_with_labels_it_starts_from_the_weights_it_has(images, kind):
    old = shaken(kind)
    new = old.labelled()
    assert new.sees_labels and not old.sees_labels
    state = new.state_dict()
    assert set(state) - set(old.state_dict()) == {"network.unet.class_embedding.weight"}
    assert all(torch.equal(state[name], value) for name, value in old.state_dict().items())
    level = torch.full((8,), 0.3)
    with torch.no_grad():
        torch.testing.assert_close(new.network(images, level), old.network(images, level))  # no label is what it was
        assert not torch.allclose(new.network(images, level, classes=CLASSES), old.network(images, level), atol=1e-4)
    seen = ddae(labels=True)
    again = seen.labelled().network.unet.class_embedding.weight
    assert torch.equal(again, seen.network.unet.class_embedding.weight), "one that it had is kept"
    assert new.optim(8) == old.optim(8) and new.augment() == old.augment()


def test_too_few_classes_are_refused():
    few = replace(Ddae.recipe("nano", DIGITS).net, classes=4)
    with pytest.raises(HarnessError, match=r"ddae\.net\.classes=4 with labels"):
        ddae(net=few, labels=True)
