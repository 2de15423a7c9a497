"""What every method promises, whoever wrote it (design.md, "The method interface")."""

from __future__ import annotations

import re
import tomllib

import pytest
import torch

from harness.config import override, parse_words
from harness.data.pixels import to_float
from harness.evaluation import can
from harness.method import DataSpec, Method
from harness.plugins import card, find, load_method
from harness.rng import Rng
from harness.train import flops
from harness.train.optim import build_optimizer, set_rate
from tests.contract.conftest import METHODS, batch_of, build, rng

SHAPES = [
    DataSpec("grey 8 px", channels=1, size=8, classes=10),
    DataSpec("grey 28 px", channels=1, size=28, classes=10),
    DataSpec("colour 32 px", channels=3, size=32, classes=10),
    DataSpec("colour 64 px", channels=3, size=64, classes=200),
]


def images_of(digits, n: int = 16) -> torch.Tensor:
    return to_float(digits.fit.images[:n])


@pytest.mark.parametrize("spec", SHAPES, ids=lambda s: s.name)
def test_builds_at_every_size_it_declares(method_class, spec):
    for size in method_class.sizes:
        with torch.device("meta"):
            built = method_class.create(method_class.recipe(size, spec), spec)
        assert sum(p.numel() for p in built.parameters()) > 0


def test_sizes_grow(method_class):
    spec = SHAPES[2]
    counts = []
    for size in method_class.sizes:
        with torch.device("meta"):
            built = method_class.create(method_class.recipe(size, spec), spec)
        counts.append(sum(p.numel() for p in built.parameters() if p.requires_grad))
    assert counts == sorted(counts) and len(set(counts)) == len(counts)


def test_loss_falls_on_real_digits(nano, digits):
    """Forty steps on one batch bring the loss well under where it began."""
    batch = batch_of(nano, images_of(digits, 64))
    optim = nano.optim(batch_size=64)
    optimizer = build_optimizer(nano, optim)
    set_rate(optimizer, 1e-3)
    losses = []
    for step in range(40):
        loss = nano(batch, 0.5, rng().at(step)).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5]), losses


def test_gradients_are_finite_and_reach_every_parameter(nano, digits):
    """After two steps (gates that start at zero open in the first) every trained parameter has a gradient."""
    batch = batch_of(nano, images_of(digits))
    optimizer = build_optimizer(nano, nano.optim(batch_size=16))
    set_rate(optimizer, 1e-2)
    for step in range(3):
        optimizer.zero_grad()
        nano(batch, 0.5, rng().at(step)).total.backward()
        if step < 2:
            optimizer.step()
    trained = {n: p for n, p in nano.named_parameters() if p.requires_grad}
    assert not [n for n, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()]
    assert not [n for n, p in trained.items() if p.grad is None or not p.grad.any()]


def test_every_trained_parameter_is_in_one_group(nano):
    grouped = [id(p) for group in nano.param_groups() for p in group["params"]]
    trained = {id(p) for p in nano.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped))
    own = trained - _preparation_parameters(nano)
    assert set(grouped) - _preparation_parameters(nano) == own


def _preparation_parameters(method: Method) -> set[int]:
    preparation = method.preparation()
    return set() if preparation is None else {id(p) for p in preparation.objective.parameters()}


def test_features_are_deterministic_and_of_the_declared_shape(nano, digits):
    nano.eval()
    images, taps = images_of(digits), nano.taps()
    assert len(taps) == len(set(taps)) >= 1
    with torch.no_grad():
        together = nano.features(images, taps, rng())
    again = nano.features(images, taps, rng())
    for tap, first, second in zip(taps, together, again, strict=True):
        assert first.shape[0] == len(images) and first.ndim == 2, tap
        assert first.isfinite().all() and not first.requires_grad, tap
        assert torch.equal(first, second), f"{tap}: with a gradient and without, the same"
        alone = nano.features(images, [tap], rng())[0]
        torch.testing.assert_close(alone, first, rtol=1e-4, atol=1e-5)


def test_features_can_be_differentiated(nano, digits):
    """The gradient of the features at the first tap reaches all that they rest on, but for a VAE."""
    nano.eval()
    frozen = _preparation_parameters(nano)
    images, tap = images_of(digits, 4), nano.taps()[0]
    (values,) = nano.features(images, [tap], rng())
    (values * rng().normal("weights", values.shape)).sum().backward()
    reached = {name for name, p in nano.named_parameters() if p.grad is not None}
    read = flops.Reads()
    with read, torch.no_grad():
        nano.features(images, [tap], rng())
    rested_on = {
        name
        for name, p in nano.named_parameters()
        if p.untyped_storage().data_ptr() in read.storages and id(p) not in frozen
    }
    assert reached and reached == rested_on
    assert all(p.grad.isfinite().all() for p in nano.parameters() if p.grad is not None)


def test_features_differ_between_images_once_trained_a_little(nano, digits):
    batch = batch_of(nano, images_of(digits, 32))
    optimizer = build_optimizer(nano, nano.optim(batch_size=32))
    set_rate(optimizer, 1e-3)
    for step in range(3):
        nano(batch, 0.5, rng().at(step)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    nano.eval()
    for tap, values in zip(nano.taps(), nano.features(images_of(digits), nano.taps(), rng()), strict=True):
        assert values.std(dim=0).max() > 0, tap


def test_dense_features_are_maps(nano, digits):
    nano.eval()
    image_taps = [t for t in nano.taps() if "cls" not in t.layer and "class" not in t.layer]
    for tap in image_taps:
        (maps,) = nano.features(images_of(digits, 4), [tap], rng(), dense=True)
        assert maps.ndim == 4 and maps.shape[0] == 4 and maps.shape[2] == maps.shape[3] > 1


def test_samples_are_images_in_range_and_follow_the_key(nano, digits):
    """A few training steps first: samplers may rest on statistics that training gathers."""
    if not card_of(nano)["capabilities"]["sample"]:
        pytest.skip("the card says that this method cannot draw")
    batch = batch_of(nano, images_of(digits, 64))
    for step in range(17):
        nano(batch, 0.5, rng().at(step))
    nano.eval()
    spec = digits.spec
    first = nano.sample(3, rng(), steps=4)
    assert first.shape == (3, spec.channels, spec.size, spec.size)
    assert first.isfinite().all() and first.min() >= -1 and first.max() <= 1
    assert torch.equal(first, nano.sample(3, rng(), steps=4))
    other = nano.sample(3, Rng(8), steps=4)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_with_labels_it_starts_from_its_weights_learns_and_draws_classes(nano, digits):
    if not can(nano, "labelled"):
        pytest.skip("it cannot be taught to draw a class")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = nano.labelled()
    assert method.sees_labels and all(torch.equal(method.state_dict()[n], t) for n, t in nano.state_dict().items())
    images, labels = images_of(digits, 64), digits.fit.labels[:64]
    batch = batch_of(method, images)._replace(labels=labels)
    optimizer = build_optimizer(method, method.optim(batch_size=64))
    set_rate(optimizer, 1e-2)
    for step in range(4):
        optimizer.zero_grad()
        method(batch, 0.5, rng().at(step)).total.backward()
        if step < 3:
            optimizer.step()
    assert not [n for n, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    method.eval()
    one, other = (method.sample(2, rng(), labels=torch.tensor([0, y]), steps=4, guidance=1.5) for y in (1, 2))
    assert one.shape[1:] == images.shape[1:] and one.isfinite().all()
    torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one[1], other[1], atol=1e-3), "another class is another picture"
    assert not torch.allclose(one, method.sample(2, rng(), torch.tensor([0, 1]), 4, guidance=1.0), atol=1e-3)


def card_of(method: Method) -> dict:
    name = next(n for n in METHODS if find("method", n).load() is type(method))
    return card(name)


def test_global_rng_is_never_used(nano, digits):
    batch = batch_of(nano, images_of(digits))
    before = torch.get_rng_state()
    nano(batch, 0.3, rng())
    nano.eval()
    nano.features(images_of(digits, 4), nano.taps(), rng())
    if card_of(nano)["capabilities"]["sample"]:
        nano.train()
        nano(batch, 0.3, rng())
        nano.eval().sample(2, rng(), steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_the_same_seed_builds_the_same_network(method_class, digits):
    one, two = build(method_class, digits).state_dict(), build(method_class, digits).state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_state_loads_weights_only(nano, tmp_path):
    torch.save(nano.state_dict(), tmp_path / "state.pt")
    nano.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


def test_odd_last_batches_work(nano, digits):
    """A count budget ends on a batch of whatever is left."""
    for n in (1, 3):
        loss = nano(batch_of(nano, images_of(digits, n)), 0.9, rng()).total
        assert loss.isfinite()


@pytest.mark.parametrize("name", METHODS)
def test_card_is_plain_data_with_what_tables_need(name):
    about = tomllib.loads((find("method", name).folder / "card.toml").read_text())
    for key in ("title", "paper", "year", "arxiv", "idea", "space", "sampling", "capabilities", "notes"):
        assert key in about, key
    assert about["space"] in ("pixels", "latents")
    verbs = {"features": "features", "sample": "sample", "labels": "labelled"}
    assert about["capabilities"] == {what: can(load_method(name), verb) for what, verb in verbs.items()}
    for source in about.get("published", []):
        assert {"model", "dataset", "metric", "value", "protocol", "source"} <= source.keys()
    assert (find("method", name).folder / "README.md").is_file()


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_that_the_card_names_can_be_typed(name):
    """Departures say how to have the paper's way; what they say is accepted as it stands."""
    recipe = load_method(name).recipe("nano", SHAPES[2])
    for departure in card(name).get("departures", []):
        words = re.findall(rf"\b{name}\.\w+=\S+", departure["what"] + " " + departure["why"])
        settings = parse_words([word.rstrip(".,;") for word in words]).get(name, {})
        assert override(recipe, settings, name) is not None
