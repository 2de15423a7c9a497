"""EDM's augmentation: the reference's pictures for given draws, how often it draws, what it leaves alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backbones.edm_augment import Warp
from harness.rng import Rng

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "edm_augment.json").read_text())


def pattern(batch: int, side: int) -> Tensor:
    b, c, y, x = torch.meshgrid(*(torch.arange(n) for n in (batch, 3, side, side)), indexing="ij")
    return torch.sin(0.11 * (b + 1) * (y + 1) + 0.23 * (x + 1) + c)


def wave(y: Tensor, x: Tensor) -> Tensor:
    """The first image of `pattern` at rows `y` and columns `x`."""
    return torch.sin(0.11 * (y.view(-1, 1) + 1) + 0.23 * (x + 1) + torch.arange(3).view(1, 3, 1, 1))


def given() -> Warp:
    draws = {name: torch.tensor(values) for name, values in GOLDEN["draws"].items()}
    return Warp(**draws | {"flip": draws["flip"].bool()})


def still(batch: int, **changes: Tensor) -> Warp:
    zeros = {name: torch.zeros(batch) for name in ("scale", "turn", "stretch", "axis")}
    return Warp(**{"flip": torch.zeros(batch, 2).bool(), "shift": torch.zeros(batch, 2)} | zeros | changes)


def test_images_and_label_equal_the_reference():
    warp = given()
    torch.testing.assert_close(warp.label(), torch.tensor(GOLDEN["label"]), rtol=0, atol=2e-6)
    found = warp.applied(pattern(6, 16))
    assert found.abs().mean(dim=(1, 2, 3)).tolist() == pytest.approx(GOLDEN["mean_abs"], abs=2e-6)
    torch.testing.assert_close(found[:, 0, 7], torch.tensor(GOLDEN["row"]), rtol=0, atol=1e-5)


def test_what_is_left_alone_comes_back_as_it_was():
    """Also where other images of the batch are moved far, and the pictures have a side for themselves."""
    images = pattern(3, 8)[..., :6]
    warp = still(3, shift=torch.tensor([[0.0, 0.0], [9.0, -9.0], [0.0, 0.0]]))
    found = warp.applied(images)
    torch.testing.assert_close(found[[0, 2]], images[[0, 2]], rtol=0, atol=1e-5)
    assert not torch.allclose(found[1], images[1], atol=0.1) and not warp.label()[0].any()


def test_each_part_does_what_it_says():
    images = pattern(1, 16)
    inner = (..., slice(4, 12), slice(4, 12))

    def moved(**changes: Tensor) -> Tensor:
        return still(1, **changes).applied(images)

    near = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(moved(flip=torch.tensor([[True, False]])), images.flip(3), **near)
    torch.testing.assert_close(moved(flip=torch.tensor([[False, True]])), images.flip(2), **near)
    right = moved(shift=torch.tensor([[1.0, 0.0]]))  # an eighth of 16 px
    torch.testing.assert_close(right[inner], images.roll(2, dims=3)[inner], **near)
    quarter = moved(turn=torch.tensor([math.pi / 2]))
    torch.testing.assert_close(
        quarter, images.rot90(1, dims=(2, 3)), rtol=0, atol=5e-2
    )  # the filter is no mirror image of itself
    at = torch.arange(16) - 7.5
    wide = moved(stretch=torch.tensor([5.0]))  # twice as wide, half as high
    torch.testing.assert_close(wide[inner], wave(2 * at + 7.5, at / 2 + 7.5)[inner], rtol=0, atol=5e-2)
    across = moved(stretch=torch.tensor([5.0]), axis=torch.tensor([math.pi / 2]))
    torch.testing.assert_close(across, moved(stretch=torch.tensor([-5.0])), **near)
    large = moved(scale=torch.tensor([5.0]))
    torch.testing.assert_close(large[inner], wave(at / 2 + 7.5, at / 2 + 7.5)[inner], rtol=0, atol=5e-2)


def test_draws_are_as_often_and_as_wide_as_the_card_says():
    n = 20_000
    warp = Warp.drawn(n, 0.12, Rng(0))
    assert warp.flip.double().mean(0).tolist() == pytest.approx([0.5, 0.06], abs=0.01)
    for values in (warp.scale, warp.turn, warp.stretch, warp.shift[:, 0]):
        assert (values != 0).double().mean().item() == pytest.approx(0.12, abs=0.01)
    assert torch.equal(warp.shift[:, 0] != 0, warp.shift[:, 1] != 0), "one choice for both directions"
    assert (warp.axis != 0).double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert warp.scale[warp.scale != 0].std().item() == pytest.approx(1.0, abs=0.05)
    assert warp.turn.abs().max() <= math.pi and warp.turn.abs().max() > 3
    again = Warp.drawn(n, 0.12, Rng(0))
    assert all(torch.equal(a, b) for a, b in zip(warp, again, strict=True))


def test_another_batch_changes_no_image():
    """What is mirrored beside an image follows the farthest look of the batch; the picture does not."""
    warp, images = given(), pattern(6, 16)
    alone = Warp(*(values[2:3] for values in warp)).applied(images[2:3])
    torch.testing.assert_close(alone, warp.applied(images)[2:3], rtol=0, atol=1e-5)
