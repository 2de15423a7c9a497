"""DiT with labels: what reaches the loss, what is dropped, what features never see, what samples are of."""

from __future__ import annotations

import pytest
import torch

from backbones.labels import dropped
from harness.data.dataset import load
from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.method import Batch
from harness.rng import Rng
from methods.dit.method import Config, Dit
from tests.methods.test_dit import dit


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return to_float(load("digits").fit.images[:8])


def shaken(**changes) -> Dit:
    """Off its initialisation, where gates are shut and labels reach nothing."""
    method = dit(**changes).eval()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.05 * torch.sin(torch.arange(p.numel(), dtype=torch.float32)).view(p.shape))
    return method


def test_labels_reach_the_loss_and_their_own_rows_of_the_table(images):
    method = shaken(labels=True, label_drop=0.0)
    assert method.sees_labels and method.network.label_table.weight.shape[0] == 11
    labels = torch.tensor([0, 3, 3, 5, 7, 7, 8, 9])
    one, other = (method(Batch(images, labels=y), 0.5, Rng(0)).total for y in (labels, labels.flip(0)))
    assert one != other
    one.backward()
    rows = method.network.label_table.weight.grad.any(dim=1).nonzero().flatten()
    assert rows.tolist() == [0, 3, 5, 7, 8, 9], "the row of no label among those that are not met"
    with pytest.raises(HarnessError, match="a batch without labels"):
        method(Batch(images), 0.5, Rng(0))


def test_label_free_pre_training_reads_no_labels(images):
    method = shaken()
    assert not method.sees_labels and not method.network.classes
    with_, without = (method(Batch(images, labels=y), 0.5, Rng(0)).total for y in (torch.arange(8), None))
    assert torch.equal(with_, without)


def test_a_tenth_of_the_labels_is_dropped():
    labels = torch.arange(20_000) % 10
    found = dropped(labels, Config().label_drop, 10, Rng(0))
    gone = found == 10
    assert torch.equal(found[~gone], labels[~gone])
    assert gone.double().mean() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(dropped(labels, 0.1, 10, Rng(0)), found) and not torch.equal(
        dropped(labels, 0.1, 10, Rng(1)), found
    )
    assert torch.equal(dropped(labels, 0.0, 10, Rng(0)), labels)


def test_the_other_draws_of_a_step_are_the_label_free_ones(images, monkeypatch):
    seen = []
    monkeypatch.setattr(Dit, "objective", lambda self, x, k, eps, labels=None: seen.append((x, k, eps)))
    for method in (dit(), dit(labels=True)):
        method.pretrain(Batch(images, labels=torch.arange(8)), 0.5, Rng(4))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_features_are_those_of_no_label(images):
    """Of a network that saw labels, too: whatever else the table holds, the last row alone is read."""
    method = shaken(labels=True)
    before = method.features(images, method.taps(), Rng(0))
    with torch.no_grad():
        method.network.label_table.weight[:-1] += 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, method.features(images, method.taps(), Rng(0)), strict=True))
    with torch.no_grad():
        method.network.label_table.weight[-1] += 1.0
    assert not torch.equal(before[0], method.features(images, method.taps()[:1], Rng(0))[0])


def test_a_labelled_dit_draws_every_class_unless_told_which():
    method = shaken(labels=True)
    given = []
    method.network.register_forward_hook(lambda _, args, __: given.append(args[2]))
    method.sample(64, Rng(0), steps=1)
    assert set(given[0].tolist()) == set(range(10))
    free = shaken(classes=10)
    free.network.register_forward_hook(lambda _, args, __: given.append(args[2]))
    free.sample(4, Rng(0), steps=1)
    assert given[-1] is None, "a table that pre-training never saw is not drawn from"


def test_guidance_may_be_chosen_where_samples_are_drawn():
    method, labels = shaken(labels=True, guidance=2.0), torch.tensor([1, 7])
    own = method.sample(2, Rng(0), labels, steps=3)
    assert torch.equal(own, method.sample(2, Rng(0), labels, steps=3, guidance=2.0))
    plain = shaken(labels=True).sample(2, Rng(0), labels, steps=3)
    assert torch.equal(plain, method.sample(2, Rng(0), labels, steps=3, guidance=1.0)) and not torch.equal(plain, own)


def test_with_labels_it_starts_from_the_weights_it_has(images):
    old = shaken()
    new = old.labelled()
    assert new.sees_labels and not old.sees_labels
    state = new.state_dict()
    assert set(state) - set(old.state_dict()) == {"network.label_table.weight"}
    assert all(torch.equal(state[name], value) for name, value in old.state_dict().items())
    assert all(p.requires_grad for p in new.parameters())
    k = torch.arange(8) * 100
    torch.testing.assert_close(new.network(images, k), old.network(images, k))  # no label is what it was
    assert not torch.allclose(new.network(images, k, torch.arange(8)), old.network(images, k), atol=1e-3)
    again, seen = shaken(labels=True).labelled(), shaken(labels=True)
    assert torch.equal(again.network.label_table.weight, seen.network.label_table.weight), "one that it had is kept"
    assert new.optim(8) == old.optim(8) and new.augment() == old.augment()


def test_too_few_classes_are_refused():
    with pytest.raises(HarnessError, match=r"dit\.classes=4 with labels"):
        dit(classes=4, labels=True)
    with pytest.raises(ValueError, match="label_drop"):
        dit(label_drop=1.0)


def test_labels_steer_samples_where_there_are_any():
    method = shaken(classes=10)
    one, other = (method.sample(2, Rng(0), labels=torch.tensor([y, y]), steps=3) for y in (1, 7))
    assert not torch.equal(one, other)
    guided = dit(classes=10, guidance=2.0).eval()
    guided.load_state_dict(method.state_dict())
    assert not torch.equal(guided.sample(2, Rng(0), labels=torch.tensor([1, 1]), steps=3), one)


def test_a_labelled_dit_goes_out_with_its_whole_table():
    from methods.dit.export import to_diffusers

    method = shaken(labels=True)
    out = to_diffusers(method)
    assert out.settings["null_label"] == 10
    theirs = out.network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
    assert torch.equal(theirs, method.network.label_table.weight)
