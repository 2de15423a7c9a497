"""What a masked method fills in: held-out images with patches hidden at random, and with the middle hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.data.pixels import to_uint8
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.evaluation import Context

# Shapes: B images, C channels, H = W image side.

RATIO = 0.75  # of the patches hidden at random, MAE's
GREY = 127  # of hidden pixels in the picture


def middle(side: int) -> Tensor:
    """bool [H, W], the square in the middle that is half as wide as the image."""
    hidden = torch.zeros(side, side, dtype=torch.bool)
    quarter = side // 4
    hidden[quarter : side - quarter, quarter : side - quarter] = True
    return hidden


def panels(context: Context, n: int) -> tuple[Tensor, dict[str, Any]]:
    """Six rows of `n` images of the select part, uint8 [6n, C, H, W], and how far the hidden pixels are off.

    Rows: the images, with patches hidden at random, filled in; the images, with the middle hidden, filled in.
    Raises HarnessError for a reconstruction of another shape, or one that is not finite.
    """
    images = context.part("select").chunk(0, n)
    rows, facts = [], {}
    for name, hide in (("random", RATIO), ("middle", middle(images.shape[-1]).to(images.device))):
        with torch.no_grad(), context.autocast():
            found = context.method.reconstruct(images, hide, context.rng.at("reconstruct", name))
        _check(context, images, found.images)
        hidden = found.hidden[:, None].expand_as(images)
        error = (found.images.float() - images)[hidden].square().mean()
        facts[name] = {
            "hidden": round(found.hidden.float().mean().item(), 4),
            "psnr": round(10 * torch.log10(4 / error.clamp(min=1e-12)).item(), 2),  # of values from -1 to 1
        }
        facts["knows"] = found.knows
        shown = to_uint8(images)
        rows += [shown, shown.masked_fill(hidden, GREY), to_uint8(found.images)]
    return torch.cat(rows).cpu(), facts


def _check(context: Context, images: Tensor, found: Tensor) -> None:
    name = type(context.method).__name__
    if found.shape != images.shape:
        raise HarnessError(f"{name}.reconstruct gave {list(found.shape)}", f"{list(images.shape)}")
    if not torch.isfinite(found).all():
        raise HarnessError(
            f"reconstructions of {name} are not finite",
            "finite images; the training may have diverged",
            "look at the loss in the run's log.jsonl, or evaluate in fp32",
        )
