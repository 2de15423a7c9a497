"""UMD's encoder for others: on clean images the time is fixed, so the modulation folds into a plain timm ViT."""

from __future__ import annotations

import torch
from torch import Tensor

from backbones.timm_vit import FOLDED, TimmVit, args_of, folded, numbered, patch_kernel
from backbones.umd_vit import UmdVit
from harness.errors import HarnessError
from harness.method import Tap
from methods.umd.method import Umd

EQUAL = 1e-6  # difference up to which class tokens count as one, repeated


@torch.no_grad()
def to_timm(method: Umd, tap: Tap) -> TimmVit:
    """The encoder up to `tap`. HarnessError for class tokens that differ: timm reads one of them, UMD their mean."""
    net: UmdVit = method.network
    c, last = method.config, tap.layer in ("cls", "patches")
    if tap.layer == "cls" and not _one(net.cls):
        raise HarnessError(
            f"the mean of {len(net.cls)} different class tokens, which no pooling of timm's takes",
            "class tokens that are equal (umd.class_token_std=0, the paper's), or a tap of patch tokens",
            "--tap patches",
        )
    depth = c.depth if last else int(tap.layer.removeprefix("block"))
    pool = "token" if tap.layer == "cls" else "avg"
    args = args_of(method.data.size, net.channels, net.patch, net.width, depth, c.heads, pool=pool, norm=last)
    args |= FOLDED | {"no_embed_class": True, "reg_tokens": len(net.cls) - 1}
    cond = net.condition(torch.zeros(1, dtype=torch.long, device=net.cls.device))  # clean images have time 0
    state = {
        "cls_token": net.cls[None, :1],
        "pos_embed": net.position[None],
        "patch_embed.proj.weight": patch_kernel(net.embed.weight, net.patch),
        "patch_embed.proj.bias": net.embed.bias,
    }
    state |= {"reg_token": net.cls[None, 1:]} if len(net.cls) > 1 else {}
    state |= numbered("blocks", (folded(block, cond) for block in list(net.encoder)[:depth]))
    state |= {f"norm.{name}": value for name, value in net.encoder_norm.state_dict().items()} if last else {}
    return TimmVit(args, state)


def _one(tokens: Tensor) -> bool:
    return bool((tokens - tokens[:1]).abs().max() <= EQUAL * max(1.0, float(tokens.abs().max())))
