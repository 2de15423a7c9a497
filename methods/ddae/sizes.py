"""DDAE's networks at the harness's sizes, for images of any side."""

from __future__ import annotations

from math import ceil, log2
from typing import NamedTuple

from backbones.unet import UnetConfig

SHORT = {"nano": 2e-3, "ti": 1e-3}  # sizes for budgets of minutes: the peak rate (card.toml says how it was chosen)


class Shape(NamedTuple):
    """A size's levels; the first may come several times, until the last is `bottom` px or less."""

    width: int
    mults: tuple[int, ...]
    blocks: int
    attention: int  # level, of these
    bottom: int


# As many parameters as MAE's at that size within 15 %, and the FLOPs of its encoder as near as three levels allow.
SHAPES = {
    "nano": Shape(16, (1, 1, 4), 1, 1, 8),
    "ti": Shape(48, (1, 2, 4), 1, 1, 4),
    "s": Shape(96, (1, 2, 2), 4, 1, 8),
    "b": Shape(192, (1, 2, 2), 5, 1, 8),
    "l": Shape(320, (1, 2, 2), 5, 1, 8),
    "xl": Shape(448, (1, 2, 2), 5, 1, 8),
}


def net(size: str, side: int) -> UnetConfig:
    """The network of a size for images of `side` px, of DDPM's kind."""
    shape = SHAPES[size]
    added = max(0, min(ceil(log2(side / shape.bottom)), halvings(side)) - len(shape.mults) + 1)
    width, mults = shape.width, (1,) * added + shape.mults
    if added and width > 64:  # half as wide where the side doubles, as in the reference's 64 px network
        width, mults = width // 2, (1,) * added + tuple(2 * m for m in shape.mults)
    if size == "nano" and side > 160:  # where MAE's patches, now of 16 px, have nearly half of its parameters
        mults = (*mults[:-1], 6)
    return UnetConfig(
        width=width,
        mults=mults,
        blocks=shape.blocks,
        attention=(added + shape.attention,),
        dropout=0.0 if size in SHORT else 0.1,
        groups=min(32, width // 4),
    )


def halvings(side: int) -> int:
    """How often a side in px can be halved."""
    return (side & -side).bit_length() - 1
