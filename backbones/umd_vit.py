"""UMD's network: one ViT encoder-decoder with adaLN-Zero, class tokens, and two heads on every patch.

Shapes: B batch, C channels, p patch side, L tokens of an image, K kept ones, D width. Patches are [B, L,
p*p*C] as `tokens.patchify` lays them out. The reference's patch convolution and transposed convolution are
the linear layers `embed` and `head` here: dropped patches are then never embedded, and losses are taken on
patches (card umd, section 4).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.adaln_vit import AdaLNBlocks, ConditionMlp, lecun, modulate, sinusoid, zero
from backbones.tokens import Drop, patchify, put_back, take, unpatchify
from harness.errors import HarnessError


class Encoded(NamedTuple):
    rep: Tensor  # [B, D] mean of the class tokens after the norm: the paper's feature
    tokens: Tensor  # [B, K, D] patch tokens after the norm
    blocks: dict[int, Tensor]  # [B, K, D] patch tokens after the blocks asked for


class Prediction(NamedTuple):
    x0: Tensor  # [B, L, p*p*C], or [B, C, H, W] from `forward`
    eps: Tensor  # same


class UmdVit(nn.Module):
    """Encoder on the kept patches, decoder of the same width on all; time (and label) modulate both.

    With `class_token_std` 0, the reference's, the class tokens start equal, get equal gradients and stay
    equal for ever: one class token that counts `class_tokens` times in every softmax (card umd, section 9,
    pitfall 2).
    """

    def __init__(
        self,
        image: int,
        channels: int,
        patch: int,
        width: int,
        depth: int,
        decoder_depth: int,
        heads: int,
        class_tokens: int = 4,
        class_token_std: float = 0.0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        if image % patch:
            raise HarnessError(f"patches of {patch} px do not cut {image} px evenly", "a patch that divides the image")
        self.patch, self.width, self.classes, self.channels = patch, width, classes, channels
        self.tokens = (image // patch) ** 2
        pixels = patch * patch * channels
        self.embed = nn.Linear(pixels, width)
        self.position = nn.Parameter(torch.randn(self.tokens, width) / self.tokens**0.5)
        self.cls = nn.Parameter(nn.init.normal_(torch.empty(class_tokens, width), std=class_token_std))
        self.encoder = AdaLNBlocks(depth, width, heads)
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.decoder_position = nn.Parameter(torch.randn(self.tokens, width) / self.tokens**0.5)
        self.decoder = AdaLNBlocks(decoder_depth, width, heads)
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, 2 * pixels, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(2, channels))  # one for a channel, not for a pixel
        self.time_mlp = ConditionMlp(width, 2 * width, width)
        if classes:
            self.label_table = nn.Embedding(classes + 1, width)  # the last row is "no label"
            self.label_mlp = ConditionMlp(width, 2 * width, width)
            nn.init.normal_(self.label_table.weight, std=width**-0.5)
        lecun(self.embed)
        zero(self.final_modulation)
        nn.init.normal_(self.head.weight, std=0.02)

    def condition(self, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """[B, D] from model times [B] (0: clean, k + 1: noise level k) and labels [B] (None: no label)."""
        code = self.time_mlp(sinusoid(time, self.width, self.position.dtype))
        if self.classes:
            labels = torch.full_like(time, self.classes) if labels is None else labels
            code = code + self.label_mlp(self.label_table(labels))
        return F.silu(code)

    def encode(self, images: Tensor, cond: Tensor, drop: Drop | None = None, look: tuple[int, ...] = ()) -> Encoded:
        """What the encoder makes of `images` [B, C, H, W], seeing the kept patches (all without `drop`)."""
        x = patchify(images, self.patch)
        if drop is None:
            x = self.embed(x) + self.position
        else:  # F.embedding, because the backward pass of plain indexing is slow
            x = self.embed(take(x, drop.keep)) + F.embedding(drop.keep, self.position)
        n = len(self.cls)
        x, seen = self.encoder(torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1), cond, look)
        x = self.encoder_norm(x)
        return Encoded(x[:, :n].mean(dim=1), x[:, n:], {number: y[:, n:] for number, y in seen.items()})

    def fill(self, encoded: Encoded, drop: Drop | None) -> Tensor:
        """The decoder's input [B, 1 + L, D]: `rep` as one token, then all patches, gaps as mask token."""
        x = encoded.tokens if drop is None else put_back(encoded.tokens, self.mask_token, drop.restore)
        return torch.cat([encoded.rep[:, None], x + self.decoder_position], dim=1)

    def decode(self, filled: Tensor, cond: Tensor) -> Prediction:
        """Clean pixels and noise of every patch, from `fill`'s tokens."""
        x, _ = self.decoder(filled, cond)
        shift, scale = self.final_modulation(cond).chunk(2, dim=1)
        x = self.head(modulate(self.decoder_norm(x)[:, 1:], shift, scale))
        x0, eps = (x.unflatten(2, (self.patch**2, 2, self.channels)) + self.head_bias).unbind(dim=3)
        return Prediction(x0.flatten(2), eps.flatten(2))

    def forward(self, images: Tensor, time: Tensor, labels: Tensor | None = None) -> Prediction:
        """Both heads as images [B, C, H, W], with no patch dropped."""
        cond = self.condition(time, labels)
        x0, eps = self.decode(self.fill(self.encode(images, cond), None), cond)
        return Prediction(unpatchify(x0, self.patch), unpatchify(eps, self.patch))

    def guided(self, images: Tensor, time: Tensor, labels: Tensor, scale: float) -> Prediction:
        """`forward` moved `scale` times the way from no label to `labels` (classifier-free guidance)."""
        null = torch.full_like(labels, self.classes)
        pairs = self(torch.cat([images, images]), torch.cat([time, time]), torch.cat([labels, null]))
        return Prediction(*(torch.lerp(free, led, scale) for led, free in (head.chunk(2) for head in pairs)))
