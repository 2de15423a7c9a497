"""Transformer parts that a condition modulates (adaLN-Zero): block, block stack, time code, condition MLP.

Shapes: B batch, N tokens, D width. The condition is [B, D] and has been through its SiLU before it gets here:
one SiLU serves all blocks. References: Peebles & Xie 2023 (DiT), section 3.2; card umd, section 4.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator
from functools import partial
from itertools import islice
from math import log

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from backbones.attention import Attention


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x` [B, N, D] scaled and shifted per image by [B, D]; zeros leave it as it is."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class AdaLNBlock(nn.Module):
    """A pre-norm block whose two branches are shifted, scaled and gated by the condition, all from zero.

    At initialisation the gates are zero and the block is the identity. `affine` norms are UMD's, DiT has
    none.
    """

    def __init__(self, width: int, heads: int, affine: bool = True, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, width, eps=1e-6, elementwise_affine=affine)
        self.norm1, self.norm2 = norm(), norm()
        self.attn = Attention(width, heads, qkv_bias=True)
        self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=partial(nn.GELU, approximate="tanh"))
        self.modulation = nn.Linear(width, 6 * width)
        self._init()

    def _init(self) -> None:
        # q, k and v are three matrices in the references: each gets its own xavier bound, not that of the
        # fused one.
        for weight in (
            *self.attn.qkv.weight.chunk(3),
            self.attn.proj.weight,
            self.mlp.fc1.weight,
            self.mlp.fc2.weight,
        ):
            nn.init.xavier_uniform_(weight)
        for bias in (self.attn.qkv.bias, self.attn.proj.bias):
            nn.init.zeros_(bias)
        for bias in (self.mlp.fc1.bias, self.mlp.fc2.bias):
            nn.init.normal_(bias, std=1e-6)
        zero(self.modulation)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class AdaLNBlocks(nn.ModuleList):
    """Blocks in a row, with a look at what leaves some of them."""

    def __init__(self, depth: int, width: int, heads: int, affine: bool = True) -> None:
        super().__init__(AdaLNBlock(width, heads, affine) for _ in range(depth))

    def forward(self, x: Tensor, cond: Tensor, look: Container[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """`x` [B, N, D] after the last block, and after each block whose number (from 1) is in `look`."""
        seen = {}
        for number, x in self.walk(x, cond):  # noqa: B020 (what goes in comes out)
            if number in look:
                seen[number] = x
        return x, seen

    def read(self, x: Tensor, cond: Tensor, look: Collection[int]) -> dict[int, Tensor]:
        """`x` [B, N, D] after each block in `look`; those behind the last of them are not run."""
        return {number: x for number, x in islice(self.walk(x, cond), max(look)) if number in look}

    def walk(self, x: Tensor, cond: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Every block's number and output, each computed when it is asked for."""
        for number, block in enumerate(self, start=1):
            x = block(x, cond)
            yield number, x


def sinusoid(time: Tensor, width: int, dtype: torch.dtype, ends: bool = True, cos_first: bool = False) -> Tensor:
    """The code [B, width] of `time` [B]: sines then cosines, frequencies from 1 down to 1/10000.

    `ends`: the last frequency is 1/10000 itself (UMD divides by half - 1); without, it is the one before
    (DiT).
    """
    half = width // 2
    place = torch.arange(half, device=time.device, dtype=dtype) / (half - 1 if ends else half)
    angle = time[:, None].to(dtype) * torch.exp(-log(10000.0) * place)
    parts = [angle.cos(), angle.sin()] if cos_first else [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1)


class ConditionMlp(nn.Sequential):
    """Two layers with a SiLU between, from a code to what conditions the blocks."""

    def __init__(self, inputs: int, hidden: int, width: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, width))
        for layer in (self[0], self[2]):
            lecun(layer)


def lecun(layer: nn.Linear) -> None:
    """Flax's default: normal cut at two deviations, variance 1 / fan-in after the cut; zero bias."""
    std = layer.in_features**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)


def zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
