"""Self-attention with the kernel that is fast where it runs; parameters are timm's (`qkv`, `proj`).

Shapes: B batch, N tokens, D width, h heads, d = D / h.
"""

from __future__ import annotations

import torch
from timm.layers import Attention as TimmAttention
from torch import Tensor, nn
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, all [B, h, N, d].

    On CPUs the fused kernel's bfloat16 forward and backward take 2 to 7 times as long as plain products at the
    sequence lengths met here (17 to 257 tokens, measured); everywhere else the fused kernel wins.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(TimmAttention):
    """timm's attention without its rare options, over `attend`; for the `attn_layer` of a timm Block."""

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v).transpose(1, 2).reshape(b, n, -1))


class ByKernel:
    """A processor for diffusers' attention: plain products where `attend` takes them, else the fused kernel."""

    def __init__(self) -> None:
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        self._plain, self._fused = AttnProcessor(), AttnProcessor2_0()

    # The names are what diffusers looks for: it warns of arguments that a processor does not list.
    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        plain = hidden_states.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        kernel = self._plain if plain else self._fused
        return kernel(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
