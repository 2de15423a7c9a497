"""The asymmetric masked autoencoder: a ViT sees the kept tokens, a small ViT fills in the dropped ones.

MAE and LMD share it; they differ in what a token is cut from, in the mask ratio, and in the sign of the decoder's
position code (cards mae and lmd, section 2). Parameter names are those of the public MAE checkpoints.

Shapes: B batch, C channels, N tokens, K kept tokens, P numbers in a patch, D encoder width, E decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.attention import Attention
from backbones.sizes import Trunk
from backbones.tokens import Drop, patchify, sincos_2d, take, unpatchify
from harness.errors import HarnessError
from harness.method import Tap

DECODERS = {
    "nano": Trunk(64, 2, 2),
    "ti": Trunk(96, 4, 3),
    "s": Trunk(192, 4, 6),
    "b": Trunk(512, 8, 16),  # MAE's, for every size of encoder
    "l": Trunk(512, 8, 16),
}
NORM_LEAST = 16  # numbers in a patch from which on recipes standardise it; measured on digits (method cards)


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder over the patches of a square image or latent, `channels` x `side` x `side`."""

    def __init__(
        self,
        channels: int,
        side: int,
        patch: int,
        encoder: Trunk,
        decoder: Trunk,
        decoder_position: int = 1,  # +1 adds the decoder's position code (MAE), -1 subtracts it (LMD)
        norm_target: bool = True,
    ) -> None:
        super().__init__()
        if side % patch:
            raise HarnessError(f"a side of {side} cannot be cut into patches of {patch}", f"a divisor of {side}")
        self.patch, self.across, self.norm_target = patch, side // patch, norm_target
        self.decoder_position = decoder_position
        numbers = channels * patch * patch
        self.patch_embed = _PatchEmbed(channels, patch, encoder.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, encoder.width))
        self.register_buffer("pos_embed", _positions(encoder.width, self.across))
        self.blocks = _blocks(encoder)
        self.norm = nn.LayerNorm(encoder.width, eps=1e-6)

        self.decoder_embed = nn.Linear(encoder.width, decoder.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder.width))
        self.register_buffer("decoder_pos_embed", _positions(decoder.width, self.across))
        self.decoder_blocks = _blocks(decoder)
        self.decoder_norm = nn.LayerNorm(decoder.width, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder.width, numbers)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier-uniform matrices with zero biases (card mae, section 2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.cls_token.shape[2], -1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    @property
    def tokens(self) -> int:
        return self.across**2

    def patches(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to [B, N, P]."""
        return patchify(images, self.patch)

    def image(self, patches: Tensor) -> Tensor:
        """The inverse of `patches`."""
        return unpatchify(patches, self.patch)

    # -- encoder ------------------------------------------------------------------------------------------------

    def _embed(self, patches: Tensor, drop: Drop | None) -> Tensor:
        """Patches [B, N, P] as tokens [B, 1 + K, D], class token first; dropped patches are never embedded."""
        position = self.pos_embed[:, 1:].expand(len(patches), -1, -1)
        if drop is not None:
            patches, position = take(patches, drop.keep), take(position, drop.keep)
        tokens = self.patch_embed(patches) + position
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)

    def encode(self, patches: Tensor, drop: Drop | None = None) -> Tensor:
        """Patches [B, N, P] to tokens after the final norm, [B, 1 + K, D], of the kept patches only."""
        tokens = self._embed(patches, drop)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def layers(self, patches: Tensor) -> list[Tensor]:
        """Tokens [B, 1 + N, D] of all patches after each block, and last after the final norm, in one pass."""
        states = [self._embed(patches, None)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return [*states[1:], self.norm(states[-1])]

    # -- decoder ------------------------------------------------------------------------------------------------

    def decode(self, tokens: Tensor, drop: Drop) -> Tensor:
        """Encoded tokens [B, 1 + K, D] to the decoder's tokens after its norm, [B, N, E], in image order."""
        x = self.decoder_embed(tokens)
        seat = F.pad(drop.keep + 1, (1, 0))  # where each encoded token sits among all; the class token first
        empty = self.mask_token.to(x.dtype).expand(len(x), 1 + self.tokens, -1)
        x = empty.scatter(1, seat[..., None].expand_as(x), x)
        x = x + self.decoder_position * self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, 1:]

    def predict(self, patches: Tensor, drop: Drop) -> Tensor:
        """The prediction [B, N, P] for every patch, seen or not, from the kept ones."""
        return self.decoder_pred(self.decode(self.encode(patches, drop), drop)).to(patches.dtype)

    # -- objective ----------------------------------------------------------------------------------------------

    def target(self, patches: Tensor) -> Tensor:
        """What is predicted of patches [..., P]: raw, or standardised by each patch's mean and unbiased variance."""
        if not self.norm_target:
            return patches
        # Layer norm divides by the biased variance; the factors turn it into the unbiased one, exactly.
        unbiased = (patches.shape[-1] - 1) / patches.shape[-1]
        return F.layer_norm(patches, patches.shape[-1:], eps=1e-6 * unbiased) * unbiased**0.5

    def loss(self, patches: Tensor, drop: Drop) -> Tensor:
        """Mean squared error over the dropped patches of the batch; seen patches bear no loss."""
        if drop.keep.shape[1] == self.tokens:
            raise HarnessError("no token is dropped, so there is nothing to predict", "a mask ratio above 0")
        error = (self.predict(patches, drop) - self.target(patches)).square().mean(dim=-1)  # [B, N]
        return (error * drop.dropped).sum() / drop.dropped.sum()

    @property
    def oracle(self) -> str:
        """What `complete` knows of the patches it predicts, in words."""
        return "each hidden patch's own mean and deviation" if self.norm_target else ""

    def complete(self, patches: Tensor, drop: Drop) -> Tensor:
        """Patches [B, N, P] with the dropped ones predicted from the others.

        A standardised prediction is scaled back by the true patch's own mean and deviation, which a real completion
        could not know ("oracle" statistics, card lmd, section 8).
        """
        prediction = self.predict(patches, drop)
        if self.norm_target:
            variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
            prediction = prediction * (variance + 1e-6).sqrt() + mean
        return torch.where(drop.dropped[..., None].bool(), prediction, patches)

    # -- features -----------------------------------------------------------------------------------------------

    def taps(self) -> list[Tap]:
        """The class token, the mean patch token, and the mean patch token after 3/4 and 1/2 of the blocks.

        These are one and the same in an encoder of fewer than three blocks, and are then named once.
        """
        depths = dict.fromkeys(max(1, len(self.blocks) * quarters // 4) for quarters in (3, 2))
        return [Tap("cls"), Tap("mean"), *(Tap(f"block{depth}") for depth in depths)]

    def features(self, patches: Tensor, taps: Sequence[Tap], dense: bool) -> list[Tensor]:
        """One [B, D] per tap, or [B, D, h, w] with `dense`, all from one pass over all patches."""
        states = self.layers(patches)
        return [self._read(states, tap.layer, dense) for tap in taps]

    def _read(self, states: list[Tensor], layer: str, dense: bool) -> Tensor:
        if layer == "cls" and dense:
            raise HarnessError("the class token has no place in the image", "a tap of patch tokens: mean or blockN")
        if layer == "cls":
            return states[-1][:, 0].float()
        tokens = states[-1] if layer == "mean" else states[int(layer.removeprefix("block")) - 1]
        if dense:
            return tokens[:, 1:].float().mT.unflatten(2, (self.across, self.across))
        return tokens[:, 1:].float().mean(dim=1)


def dropped_places(drop: Drop) -> Tensor:
    """The indices [B, N - K] of the dropped tokens."""
    return drop.restore.argsort(dim=1)[:, drop.keep.shape[1] :]


class _PatchEmbed(nn.Module):
    """A stride-`patch` convolution, applied as a matrix product to patches that are already cut."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, K, P] to [B, K, D]; the kernel is laid out as `patchify` lays out a patch."""
        kernel = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, kernel, self.proj.bias)


def _blocks(trunk: Trunk) -> nn.ModuleList:
    norm = partial(nn.LayerNorm, eps=1e-6)
    return nn.ModuleList(
        Block(trunk.width, trunk.heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm, attn_layer=Attention)
        for _ in range(trunk.depth)
    )


def _positions(width: int, across: int) -> Tensor:
    """The fixed position code [1, 1 + N, D]; the class token's row is zero."""
    return F.pad(sincos_2d(width, across), (0, 0, 1, 0))[None]
