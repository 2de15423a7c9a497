"""DiT for others: on clean images the level is fixed, so the modulation folds into a plain timm ViT."""

from __future__ import annotations

import torch

from backbones.dit_vit import DitVit
from backbones.timm_vit import FOLDED, TimmVit, args_of, folded, numbered, patch_kernel
from harness.method import Tap
from methods.dit.method import Dit


@torch.no_grad()
def to_timm(method: Dit, tap: Tap) -> TimmVit:
    """The blocks up to `tap`; DiT has neither class token nor a norm between a block and its features."""
    net: DitVit = method.network
    trunk = method.config.trunk
    depth = int(tap.layer.removeprefix("block"))
    args = args_of(method.side, method.channels, net.patch, trunk.width, depth, trunk.heads, pool="avg", norm=False)
    args |= FOLDED | {"class_token": False}
    cond = net.condition(torch.zeros(1, dtype=torch.long, device=net.embed.weight.device))
    state = {
        "pos_embed": net.position[None],
        "patch_embed.proj.weight": patch_kernel(net.embed.weight, net.patch),
        "patch_embed.proj.bias": net.embed.bias,
    }
    state |= numbered("blocks", (folded(block, cond) for block in list(net.blocks)[:depth]))
    return TimmVit(args, state)
