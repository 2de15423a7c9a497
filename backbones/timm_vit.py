"""Encoders of ours as timm's VisionTransformer: the same function, in arguments and tensors that timm loads.

At one fixed time the modulation of adaLN is constant, so it folds away: shift and scale into the norms' weights and
biases, gates into LayerScale (`init_values`). Position codes become plain tensors.

Shapes: D width, N patch tokens, K tokens before them, p patch side, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backbones.adaln_vit import AdaLNBlock

BASE = "vit_tiny_patch16_224"  # any plain ViT of timm's: every measure of it is set by `args`


@dataclass(frozen=True)
class TimmVit:
    """What `timm.create_model(BASE, **args)` has to be given to compute a method's features at one tap."""

    args: dict[str, Any]
    state: dict[str, Tensor]


def args_of(
    side: int,
    channels: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    *,
    pool: Literal["token", "avg"],
    norm: bool,
) -> dict[str, Any]:
    """The arguments of a pre-norm ViT whose head is its pooled features; `norm` is the one after the last block."""
    return {
        "img_size": side,
        "patch_size": patch,
        "in_chans": channels,
        "num_classes": 0,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "class_token": True,
        "global_pool": pool,
        "final_norm": norm,
        "fc_norm": False,
    }


def patch_kernel(weight: Tensor, patch: int) -> Tensor:
    """A matrix [D, p*p*C] over cut patches (`tokens.patchify`) as a convolution's kernel [D, C, p, p]."""
    return weight.unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2).contiguous()


def numbered(prefix: str, blocks: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{prefix}.{i}.{name}": value for i, block in enumerate(blocks) for name, value in block.items()}


@torch.no_grad()
def folded(block: AdaLNBlock, cond: Tensor) -> dict[str, Tensor]:
    """A modulated block under the one condition [1, D], as a plain block with LayerScale."""
    modulation = block.modulation(cond)[0].chunk(6)
    state = {}
    for i, part in enumerate(("attn", "mlp"), start=1):
        shift, scale, gate = modulation[3 * (i - 1) : 3 * i]
        weight, bias = _affine(getattr(block, f"norm{i}"))
        state[f"norm{i}.weight"] = weight * (1 + scale)
        state[f"norm{i}.bias"] = bias * (1 + scale) + shift
        state[f"ls{i}.gamma"] = gate
        state |= {f"{part}.{name}": value for name, value in getattr(block, part).state_dict().items()}
    return state


def _affine(norm: nn.LayerNorm) -> tuple[Tensor, Tensor | float]:
    if norm.weight is None:
        return torch.ones(norm.normalized_shape), torch.zeros(norm.normalized_shape)
    return norm.weight, norm.bias


FOLDED = {"init_values": 1.0, "act_layer": "gelu_tanh"}  # arguments that folded blocks need
