"""Heads trained with labels on a frozen backbone's maps: linear, attention, and DifFormer's fusion.

Mukhopadhyay et al. 2024 (DifFormer, DifFeed); card difformer_diffeed, section 3. Shapes: B batch, C channels, S side
of a map, N tokens, D token width, K classes. PyTorch's own initialisation everywhere, the class token zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.attention import Attention


class Measures(NamedTuple):
    """A transformer head's sizes; the paper's."""

    width: int = 1024
    depth: int = 2
    heads: int = 8
    side: int = 16  # maps are pooled to at most so many tokens along a side


PAPER = Measures()


class MapShape(NamedTuple):
    """Of one layer's maps."""

    channels: int
    side: int


class LinearHead(nn.Module):
    """One layer's maps at one noise level, pooled to `pool` x `pool` and flattened, to logits."""

    def __init__(self, shapes: Mapping[str, MapShape], classes: int, pool: int = 2) -> None:
        super().__init__()
        ((self.layer, shape),) = shapes.items()
        self.pool = nn.AdaptiveAvgPool2d(min(pool, shape.side))
        self.classify = nn.Linear(shape.channels * min(pool, shape.side) ** 2, classes)

    def forward(self, levels: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Logits [B, K] of `[{layer: maps}]`, as for `FusionHead`."""
        (level,) = levels
        maps = level[self.layer].to(self.classify.weight.dtype)
        return self.classify(self.pool(maps).flatten(1))


class Tokenizer(nn.Module):
    """Maps [B, C, S, S] to tokens [B, N, D], row by row.

    The norm is over the whole map, one mean and variance an image; its weights, one a place and channel, are the only
    thing that tells places apart.
    """

    def __init__(self, shape: MapShape, width: int, cap: int) -> None:
        super().__init__()
        side = min(shape.side, cap)
        self.pool = nn.AdaptiveAvgPool2d(side) if side < shape.side else nn.Identity()
        self.norm = nn.LayerNorm([shape.channels, side, side])
        self.project = nn.Conv2d(shape.channels, width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps.to(self.norm.weight.dtype)  # stored in half precision, or out of a network that runs in it
        return self.project(self.norm(self.pool(maps))).flatten(2).mT


class ClsTransformer(nn.Module):
    """What the class token [B, D] is after pre-norm blocks over it and `tokens` [B, N, D]; no last norm.

    The last block computes the class token alone, since nothing reads the others: the same numbers, several times
    faster.
    """

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(
            *(Block(width, heads, qkv_bias=False, norm_layer=nn.LayerNorm, attn_layer=Attention) for _ in range(depth))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        *others, last = self.blocks
        x = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in others:
            x = block(x)
        return _first_token(last, x)


def _first_token(block: Block, x: Tensor) -> Tensor:
    """`block(x)[:, 0]` for a block without drop path and layer scale."""
    attention, normed, width = block.attn, block.norm1(x), x.shape[2]
    by_head = (attention.num_heads, attention.head_dim)
    to_q, to_kv = attention.qkv.weight.split([width, 2 * width])
    q = F.linear(normed[:, 0], to_q).unflatten(1, by_head)  # [B, h, d]
    k, v = F.linear(normed, to_kv).unflatten(2, (2, *by_head)).unbind(2)  # [B, N, h, d]
    weight = torch.einsum("bhd,bnhd->bhn", q * attention.head_dim**-0.5, k).softmax(dim=2)
    x = x[:, 0] + attention.proj(torch.einsum("bhn,bnhd->bhd", weight, v).flatten(1))
    return x + block.mlp(block.norm2(x))


class FusionHead(nn.Module):
    """DifFormer: layers attend to each other, noise levels meet in the last linear layer only.

    `shapes` has the maps' shape of each layer; tokenizers and transformer are shared by all `levels` noise levels. With
    one layer and one level it is the attention head.
    """

    def __init__(self, shapes: Mapping[str, MapShape], levels: int, classes: int, measures: Measures = PAPER) -> None:
        super().__init__()
        width, depth, heads, side = measures
        self.layers = list(shapes)
        self.tokenizers = nn.ModuleList(Tokenizer(shape, width, side) for shape in shapes.values())
        self.transformer = ClsTransformer(width, depth, heads)
        self.classify = nn.Linear(levels * width, classes)

    def fused(self, levels: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """[B, levels x D]: the class tokens, which labels trained."""
        return torch.cat([self.transformer(self._tokens(maps)) for maps in levels], dim=1)

    def forward(self, levels: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Logits [B, K] from maps by layer, one mapping for each noise level."""
        return self.classify(self.fused(levels))

    def _tokens(self, maps: Mapping[str, Tensor]) -> Tensor:
        together = zip(self.layers, self.tokenizers, strict=True)
        return torch.cat([tokenizer(maps[layer]) for layer, tokenizer in together if layer in maps], dim=1)


def attention_head(shape: MapShape, classes: int, measures: Measures = PAPER) -> FusionHead:
    """The head for one layer at one noise level; its maps come as `[{"map": maps}]`."""
    return FusionHead({"map": shape}, 1, classes, measures)
