"""DiT's network: a plain ViT on patches, every block modulated by time (and label), with a head that starts at zero.

Shapes: B batch, C channels, S = H = W side, p patch side, N tokens, D width. Reference: Peebles & Xie 2023, section
3.2; card dit, section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.adaln_vit import AdaLNBlocks, modulate, sinusoid, zero
from backbones.labels import guided
from backbones.tokens import patchify, sincos_2d, unpatchify
from harness.errors import HarnessError

CODE = 256  # numbers in the sinusoid of the time


class DitVit(nn.Module):
    """Images [B, C, S, S] and levels [B] to [B, out, S, S]: noise, and with `out` = 2 C the variance channel."""

    def __init__(
        self, side: int, channels: int, out: int, patch: int, width: int, depth: int, heads: int, classes: int = 0
    ) -> None:
        super().__init__()
        if side % patch:
            raise HarnessError(f"patches of {patch} do not cut a side of {side} evenly", f"a divisor of {side}")
        self.patch, self.classes, self.across = patch, classes, side // patch
        self.embed = nn.Linear(patch * patch * channels, width)  # the reference's convolution, on cut patches
        self.register_buffer("position", sincos_2d(width, self.across), persistent=False)
        self.time_mlp = nn.Sequential(nn.Linear(CODE, width), nn.SiLU(), nn.Linear(width, width))
        if classes:
            self.label_table = nn.Embedding(classes + 1, width)  # the last row is "no label"
        self.blocks = AdaLNBlocks(depth, width, heads, affine=False)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, patch * patch * out)
        self._init()

    def _init(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (self.time_mlp[0], self.time_mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        if self.classes:
            nn.init.normal_(self.label_table.weight, std=0.02)
        for layer in (*(block.modulation for block in self.blocks), self.final_modulation, self.head):
            zero(layer)

    def condition(self, level: Tensor, labels: Tensor | None = None) -> Tensor:
        """[B, D] from levels [B] and labels [B] (None: no label), through the blocks' one SiLU."""
        code = sinusoid(level, CODE, self.position.dtype, ends=False, cos_first=True)
        code = self.time_mlp(code)
        if self.classes:
            labels = torch.full_like(level, self.classes) if labels is None else labels
            code = code + self.label_table(labels)
        return F.silu(code)

    def tokens(self, x: Tensor) -> Tensor:
        """[B, N, D]: the patches of `x` with their places, before the first block."""
        return self.embed(patchify(x, self.patch)) + self.position

    def forward(self, x: Tensor, level: Tensor, labels: Tensor | None = None) -> Tensor:
        cond = self.condition(level, labels)
        tokens, _ = self.blocks(self.tokens(x), cond)
        shift, scale = self.final_modulation(cond).chunk(2, dim=1)
        return unpatchify(self.head(modulate(self.norm(tokens), shift, scale)), self.patch)

    def guided(self, x: Tensor, level: Tensor, labels: Tensor, scale: float) -> Tensor:
        """`forward` moved `scale` times the way from no label to `labels`, in all channels of the noise.

        The reference moves the first three only, and keeps the label's own variance, as is done here.
        """
        return guided(self, x, level, labels, self.classes, scale)
