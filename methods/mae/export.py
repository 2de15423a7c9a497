"""MAE's encoder for others: a plain timm ViT."""

from __future__ import annotations

from backbones.masked_autoencoder import MaskedAutoencoder
from backbones.timm_vit import TimmVit, args_of, numbered
from harness.method import Tap
from methods.mae.method import Mae


def to_timm(method: Mae, tap: Tap) -> TimmVit:
    """The encoder up to `tap`, whose features are the timm model's output."""
    core: MaskedAutoencoder = method.core
    last = tap.layer in ("cls", "mean")
    depth = len(core.blocks) if last else int(tap.layer.removeprefix("block"))
    pool = "token" if tap.layer == "cls" else "avg"
    trunk = method.config.encoder
    args = args_of(
        method.data.size, method.data.channels, core.patch, trunk.width, depth, trunk.heads, pool=pool, norm=last
    )
    state = {
        "cls_token": core.cls_token,
        "pos_embed": core.pos_embed,
        "patch_embed.proj.weight": core.patch_embed.proj.weight,
        "patch_embed.proj.bias": core.patch_embed.proj.bias,
    }
    state |= numbered("blocks", (block.state_dict() for block in core.blocks[:depth]))
    state |= {f"norm.{name}": value for name, value in core.norm.state_dict().items()} if last else {}
    return TimmVit(args, state)
