"""A masked autoencoder in the official format, by the golden files' rule."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.tokens import Drop, kept_tokens, random_drop, sincos_2d
from tests.methods.reference import by_rule

TOY = {"width": 32, "narrow": 16, "side": 4, "channels": 3, "patch": 4}


def official(width: int, narrow: int, side: int, channels: int, patch: int) -> dict[str, Tensor]:
    """Two blocks and one, `side` patches a side, under the official names, float64."""
    shapes = {
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "norm.weight": (width,),
        "decoder_embed.weight": (narrow, width),
        "decoder_norm.weight": (narrow,),
        "decoder_pred.weight": (channels * patch**2, narrow),
    }
    for block, d in (("blocks.0", width), ("blocks.1", width), ("decoder_blocks.0", narrow)):
        shapes |= {f"{block}.norm1.weight": (d,), f"{block}.norm2.weight": (d,)}
        shapes |= {f"{block}.attn.qkv.weight": (3 * d, d), f"{block}.attn.proj.weight": (d, d)}
        shapes |= {f"{block}.mlp.fc1.weight": (4 * d, d), f"{block}.mlp.fc2.weight": (d, 4 * d)}
    shapes |= {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}
    shapes |= {"cls_token": (1, 1, width), "mask_token": (1, 1, narrow)}
    codes = {name: F.pad(sincos_2d(d, side, torch.float64), (0, 0, 1, 0))[None] for name, d in _codes(width, narrow)}
    return by_rule(shapes, lambda name: "norm" in name and name.endswith("weight")) | codes


def _codes(width: int, narrow: int) -> list[tuple[str, int]]:
    return [("pos_embed", width), ("decoder_pos_embed", narrow)]


def golden_drop(tokens: int = 16, shift: int = 0, ratio: float = 0.75, dtype=torch.float64, by: int = 7) -> Drop:
    """Of three images, from the noise ((`by` l + 5 b + 3 + shift) mod tokens) / tokens."""
    b, n = torch.arange(3)[:, None], torch.arange(tokens)
    return random_drop(((by * n + 5 * b + 3 + shift) % tokens).to(dtype) / tokens, kept_tokens(tokens, ratio))
