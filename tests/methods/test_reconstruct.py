"""The masked methods fill in what is hidden and nothing else; and every method says how it draws."""

from __future__ import annotations

import pytest
import torch

from backbones.tokens import drop_under
from harness.errors import HarnessError
from harness.evaluation import can
from harness.method import DataSpec
from harness.plugins import load_method
from harness.rng import Rng

SPEC = DataSpec("toy", 3, 16, 4)
MASKED = ("lmd", "mae", "umd")


def built(name: str):
    kind = load_method(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind.create(kind.recipe("nano", SPEC), SPEC).eval()


@pytest.fixture
def images():
    return Rng(1).uniform("images", (3, 3, 16, 16)) * 2 - 1


def test_masked_methods_have_the_verb():
    names = (*MASKED, "dit", "ddae", "difformer", "diffeed")
    assert [name for name in names if can(load_method(name), "reconstruct")] == list(MASKED)


@pytest.mark.parametrize("name", MASKED)
def test_what_is_hidden_has_no_say_and_what_is_not_stays(name, images):
    method, hide = built(name), torch.zeros(16, 16, dtype=torch.bool)
    hide[5:11, 5:11] = True
    with torch.no_grad():
        found = method.reconstruct(images, hide, Rng(0))
    assert found.images.shape == images.shape and found.images.abs().max() <= 1
    assert found.hidden[:, hide].all() and not found.hidden.all() and (found.hidden == found.hidden[0]).all()
    if name == "lmd":
        return  # its VAE reads over the border of a patch, and decodes the kept ones too
    kept = ~found.hidden[:, None].expand_as(images)
    torch.testing.assert_close(found.images[kept], images[kept], atol=0, rtol=0)
    other = torch.where(kept, images, images.flip(0))  # other pixels where it cannot see
    if found.knows:  # but for what it says it knows of a hidden patch: turned over, its mean and deviation stay
        p = method.config.patch
        turned = images.unfold(2, p, p).unfold(3, p, p).flip(-1).permute(0, 1, 2, 4, 3, 5).reshape(images.shape)
        other = torch.where(kept, images, turned)
    with torch.no_grad():
        again = method.reconstruct(other, hide, Rng(0))
    assert not torch.equal(other, images)
    torch.testing.assert_close(again.images, found.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MASKED)
def test_a_share_is_hidden_at_random_and_repeats(name, images):
    method = built(name)
    with torch.no_grad():
        one, two = (method.reconstruct(images, 0.75, Rng(0)) for _ in range(2))
        other = method.reconstruct(images, 0.75, Rng(1))
    assert one.hidden.float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert torch.equal(one.images, two.images) and torch.equal(one.hidden, two.hidden)
    assert not torch.equal(one.hidden, other.hidden) and not torch.equal(one.hidden[0], one.hidden[1])


def test_a_map_hides_every_patch_it_touches():
    hide, tokens = torch.zeros(8, 8, dtype=torch.bool), torch.zeros(2, 16, 4)
    hide[3, 0] = hide[7, 7] = True
    drop = drop_under(hide, tokens)
    assert drop.dropped.nonzero()[:, 1].tolist() == [4, 15, 4, 15]
    assert drop.keep[1].tolist() == [n for n in range(16) if n not in (4, 15)]


@pytest.mark.parametrize("value", [False, True])
def test_a_map_that_hides_all_or_nothing_is_refused(value):
    with pytest.raises(HarnessError, match=r"hides (0|16) of 16 patches"):
        drop_under(torch.full((8, 8), value), torch.zeros(2, 16, 4))


@pytest.mark.parametrize(
    ("name", "usual", "asked"),
    [
        ("mae", "patches revealed in random order, 12 rounds", "patches revealed in random order, 7 rounds"),
        (
            "lmd",
            "latent patches revealed in random order, 12 rounds",
            "latent patches revealed in random order, 7 rounds",
        ),
        ("umd", "ancestral, 50 steps", "ancestral, 7 steps"),
        ("dit", "ancestral, 50 steps", "ancestral, 7 steps"),
        ("ddae", "DDIM, 50 steps", "DDIM, 7 steps"),
    ],
)
def test_how_it_draws(name, usual, asked):
    method = built(name)
    assert (method.sampler(), method.sampler(7)) == (usual, asked)
