"""The sampler made of running moments: its statistics are right, its schedule is whole, and it draws what it saw."""

from __future__ import annotations

import pytest
import torch

from backbones.masked_autoencoder import MaskedAutoencoder
from backbones.sizes import Trunk
from backbones.tokens import random_drop
from backbones.unmasking import LEVELS, Unmasking, level_of, reveal
from harness.errors import HarnessError
from harness.rng import Rng


@pytest.fixture(scope="module")
def core() -> MaskedAutoencoder:
    """A network that has learned `two_pictures` at one mask ratio for a moment."""
    torch.manual_seed(0)
    core = MaskedAutoencoder(1, 8, 2, Trunk(32, 1, 2), Trunk(16, 1, 2), norm_target=False)
    optimizer = torch.optim.AdamW(core.parameters(), lr=3e-3)
    for step in range(60):
        drop = random_drop(Rng(5).uniform(step, (64, 16)), 4)
        optimizer.zero_grad()
        core.loss(two_pictures(64, step), drop).backward()
        optimizer.step()
    core.zero_grad(set_to_none=True)
    return core


def two_pictures(n: int, key: int) -> torch.Tensor:
    """[n, 16, 4]: every picture is one of two, bright on the left or bright on the right, plus a little noise."""
    side = Rng(3).integers(key, 2, (n, 1, 1, 1)) * 2 - 1
    ramp = torch.linspace(-0.8, 0.8, 8).view(1, 1, 1, 8)
    images = side * ramp.expand(n, 1, 8, 8) + 0.02 * Rng(4).normal(key, (n, 1, 8, 8))
    return images.unflatten(2, (4, 2)).unflatten(4, (4, 2)).permute(0, 2, 4, 3, 5, 1).reshape(n, 16, 4)


def learned(core, updates: int = 60) -> Unmasking:
    unmasking = Unmasking(core)
    for step in range(updates):
        unmasking.update(core, two_pictures(64, step), Rng(0).at(step))
    return unmasking


@pytest.mark.parametrize("tokens", [4, 16, 49, 64, 196])
@pytest.mark.parametrize("rounds", [1, 4, 12, 500])
def test_reveal_ends_whole_and_always_moves(tokens, rounds):
    after = reveal(tokens, rounds)
    assert after[-1] == tokens and len(after) == min(rounds, tokens)
    assert all(b > a for a, b in zip([0, *after], after, strict=False))


def test_reveal_is_the_cosine_schedule():
    assert reveal(64, 4) == [64 - 59, 64 - 45, 64 - 24, 64]  # floor(64 cos(pi/2 k/4))


def test_levels_are_the_nearest_mask_ratio():
    assert [level_of(r) for r in (1.0, 0.75, 0.5, 0.01)] == [LEVELS - 1, 5, 3, 0]


def test_place_statistics_follow_the_data(core):
    unmasking, patches = learned(core), two_pictures(4096, 1000)
    torch.testing.assert_close(unmasking.mean, patches.mean(dim=0), atol=0.15, rtol=0)
    torch.testing.assert_close(unmasking.variance, patches.var(dim=0), atol=0.1, rtol=0.1)


def test_the_readout_explains_more_when_more_is_seen(core):
    """Residual variance: all of it with nothing seen, little with 1/8 of the patches masked."""
    unmasking = learned(core)
    open_share = [unmasking.readout(level)[1].square().sum().item() / 4 for level in range(LEVELS)]
    assert open_share[-1] == pytest.approx(1, abs=0.15)
    assert open_share[0] < 0.6 * open_share[-1]


def test_updates_touch_no_weight_and_repeat_bit_for_bit(core):
    before = {name: value.clone() for name, value in core.state_dict().items()}
    first, second = learned(core, 8), learned(core, 8)
    assert all(torch.equal(value, before[name]) for name, value in core.state_dict().items())
    assert all(p.grad is None for p in core.parameters()) and not list(first.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert first.seen.sum() == 8


def test_statistics_go_on_after_a_reload(core):
    """Eight updates in one go equal four, a reload, and four."""
    whole, half = learned(core, 8), learned(core, 4)
    resumed = Unmasking(core)
    resumed.load_state_dict(half.state_dict())
    for step in range(4, 8):
        resumed.update(core, two_pictures(64, step), Rng(0).at(step))
    assert torch.equal(whole.moments, resumed.moments) and torch.equal(whole.variance, resumed.variance)


def test_draws_look_like_what_was_seen(core):
    """The two pictures differ in sign from left to right: drawn ones do too, in both directions, and do not repeat."""
    patches = learned(core).draw(core, 64, 12, Rng(1))
    images = core.image(patches)
    tilt = images[..., 4:].mean(dim=(1, 2, 3)) - images[..., :4].mean(dim=(1, 2, 3))
    assert tilt.abs().mean() > 0.4  # 0.91 in the data; unrelated patches of the same spread give about 0.2
    assert (tilt > 0.2).any() and (tilt < -0.2).any()
    assert len(images.flatten(1).unique(dim=0)) == 64


def test_an_untaught_sampler_and_no_rounds_are_refused(core):
    with pytest.raises(HarnessError, match="never updated"):
        Unmasking(core).draw(core, 1, 4, Rng(1))
    with pytest.raises(HarnessError, match="0 rounds"):
        learned(core, 1).draw(core, 1, 0, Rng(1))


def test_an_unseen_level_takes_what_the_others_saw(core):
    """After one update every level reads out as the one that was seen, not as the numbers it began with."""
    unmasking = learned(core, 1)
    (seen,) = unmasking.seen.nonzero().flatten().tolist()
    expected = unmasking.readout(seen)[0]
    for level in range(LEVELS):
        torch.testing.assert_close(unmasking.readout(level)[0], expected)


def test_levels_weigh_in_the_shared_moments_by_what_they_saw(core):
    unmasking = learned(core, 1)
    (one,) = unmasking.seen.nonzero().flatten().tolist()
    other, unseen = (one + 1) % LEVELS, (one + 2) % LEVELS
    unmasking.moments[other] = 3 * unmasking.moments[one]
    unmasking.seen[other] = 3
    # (1 + 3 * 3) / 4 of the moments: the residual covariance is as many times as large
    ratio = unmasking.readout(unseen)[1].square().sum() / learned(core, 1).readout(one)[1].square().sum()
    assert ratio.item() == pytest.approx(2.5, rel=1e-4)


def test_autocast_leaves_the_statistics_in_float32(core):
    full, half = learned(core, 8), Unmasking(core)
    with torch.autocast("cpu", torch.bfloat16):
        for step in range(8):
            half.update(core, two_pictures(64, step), Rng(0).at(step))
    for (name, found), expected in zip(half.named_buffers(), full.buffers(), strict=True):
        assert found.dtype == torch.float32, name
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_draws_under_autocast_are_close_to_those_in_float32(core):
    unmasking = learned(core)
    full = unmasking.draw(core, 16, 8, Rng(1))
    with torch.autocast("cpu", torch.bfloat16):
        half = unmasking.draw(core, 16, 8, Rng(1))
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    assert (half - full).square().mean() < 0.01 * full.square().mean()


def test_draws_follow_the_key_the_bounds_and_the_temperature(core):
    unmasking = learned(core, 48)  # so many that every mask ratio was met
    first, again, other = (unmasking.draw(core, 4, 4, Rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert unmasking.draw(core, 4, 4, Rng(1), bounds=(-0.5, 0.5)).abs().max() <= 0.5
    cold = unmasking.draw(core, 64, 4, Rng(1), temperature=0.0)
    assert cold.std(dim=0).mean() < 0.7 * unmasking.draw(core, 64, 4, Rng(1)).std(dim=0).mean()
