"""Images as tokens: patches, fixed position codes, random dropping and putting back.

Shapes: B batch, C channels, H = W image side, p patch side, N = (H / p)^2 tokens, K kept tokens, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate

from harness.errors import HarnessError


def patchify(images: Tensor, p: int) -> Tensor:
    """[B, C, H, W] to [B, N, p*p*C]; inside a patch (row, column, channel), channel fastest (card mae, section 2)."""
    b, c, h, w = images.shape
    x = images.reshape(b, c, h // p, p, w // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // p) * (w // p), p * p * c)


def unpatchify(tokens: Tensor, p: int) -> Tensor:
    """The inverse of `patchify` for square images."""
    b, n, d = tokens.shape
    side, c = round(n**0.5), d // (p * p)
    x = tokens.reshape(b, side, side, p, p, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, c, side * p, side * p)


def sincos_2d(width: int, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Fixed position code [side*side, width]: first half of the channels the column, second half the row; in each
    half all sines, then all cosines, frequencies 10000^(-k / (width / 4)) (card mae, section 2)."""
    grid = torch.arange(side, dtype=torch.float64)
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = grid[:, None] * omega  # [side, width / 4]
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    column = line[None, :, :].expand(side, side, -1)
    row = line[:, None, :].expand(side, side, -1)
    return torch.cat([column, row], dim=2).reshape(side * side, width).to(dtype)


class Drop(NamedTuple):
    """Which tokens were kept, and how to put the rest back."""

    keep: Tensor  # [B, K] indices of the kept tokens
    restore: Tensor  # [B, N] the place of token n in (kept, dropped)
    dropped: Tensor  # [B, N] 1 where a token was dropped, else 0


def random_drop(noise: Tensor, keep: int) -> Drop:
    """Keep the `keep` tokens of smallest noise [B, N] (uniform draws), per image and without structure."""
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    return Drop(order[:, :keep], restore, (restore >= keep).to(noise.dtype))


def kept_tokens(n: int, ratio: float) -> int:
    """How many of n tokens stay at a mask ratio: truncated as the references do, at least 1 stays and 1 goes."""
    return max(1, min(n - 1, int(n * (1 - ratio)))) if ratio > 0 else n


def drop_under(hidden: Tensor, tokens: Tensor) -> Drop:
    """Drop of `tokens` [B, N, D] those whose square of the map `hidden`, bool [H, W], has a true place."""
    side = round(tokens.shape[1] ** 0.5)
    touched = adaptive_max_pool2d(hidden.float()[None], side).flatten().to(tokens.device)
    if not 0 < touched.sum() < len(touched):
        raise HarnessError(
            f"a map that hides {int(touched.sum())} of {len(touched)} patches", "one that hides some and leaves some"
        )
    order = touched + torch.arange(len(touched), device=tokens.device) / (2 * len(touched))  # kept ones in image order
    return random_drop(order.expand(len(tokens), -1), int((touched == 0).sum()))


def dropped_pixels(drop: Drop, size: int) -> Tensor:
    """bool [B, size, size], where the dropped tokens lie in an image of `size` px."""
    side = round(drop.dropped.shape[1] ** 0.5)
    places = drop.dropped.float().unflatten(1, (1, side, side))
    return interpolate(places, size=size, mode="nearest")[:, 0] > 0


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """`tokens` [B, N, D] at `index` [B, K]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))


def put_back(kept: Tensor, filler: Tensor, restore: Tensor) -> Tensor:
    """[B, N, D] in image order: the kept tokens [B, K, D] at their places, `filler` [D] at the dropped ones."""
    b, k, d = kept.shape
    fill = filler.to(kept.dtype).expand(b, restore.shape[1] - k, d)
    return take(torch.cat([kept, fill], dim=1), restore)
