"""The diffusion U-Net: diffusers' `UNet2DModel` with the settings and replacements that make it DDAE's (or ADM's).

Shapes: B batch, C channels, H = W side, D width of a block. References: Ho et al. 2020, appendix B; Xiang et al. 2023
(card ddae, sections 2 and 15); Dhariwal & Nichol 2021 (card difformer_diffeed, section 2) for the ADM settings.

Blocks are numbered as in ADM's readers: 1 is the stem, then every residual block and every downsampler of the encoder
up to N, N + 1 the middle, N + 2 to 2 N + 1 the decoder's residual blocks. DDAE's `out_k` is block N + 1 + k. A block
with attention is read after it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from backbones.attention import ByKernel
from backbones.labels import guided
from harness.errors import HarnessError


@dataclass(frozen=True)
class UnetConfig:
    """DDAE's 35.7M network, the U-Net of DDPM on CIFAR-10."""

    width: int = 128  # of the stem and of the sinusoid
    mults: tuple[int, ...] = (1, 2, 2, 2)  # width of each level over the stem's; every level halves the side
    blocks: int = 2  # residual blocks a level in the encoder; the decoder has one more
    attention: tuple[int, ...] = (1,)  # levels with attention after each residual block, from 0; the middle has it too
    head: int = 0  # width of an attention head; 0 is one head of the whole width
    resample: Literal["conv", "residual"] = "conv"  # strided and upsampling convolution, or residual blocks (BigGAN)
    dropout: float = 0.1
    groups: int = 32  # of every group normalisation but the last
    groups_out: int = 8  # of the last
    label: int = 0  # numbers in the augmentation label; 0 has none
    classes: int = 0  # in the table of class labels, which has one more row, "no label"; 0 has no table
    modulation: Literal["shift", "scale_shift"] = (
        "shift"  # how the noise level enters a residual block; the second: ADM
    )
    code: Literal["ddpm", "adm"] = "ddpm"  # the sinusoid: sine first and ends on 1e-4, or cosine first and stops short
    read: Literal["before", "after"] = (
        "before"  # a decoder block that ends a level: without its upsampler, or with (ADM)
    )

    def __post_init__(self) -> None:
        if self.width % 2 or self.width % self.groups or self.width * self.mults[0] % self.groups_out:
            raise ValueError(f"width {self.width} has to be even and to divide into its groups, the last level too")
        if self.blocks < 1 or not all(0 <= level < len(self.mults) for level in self.attention):
            raise ValueError("blocks is at least 1, and attention names levels from 0")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout is a share")
        if self.head and any(self.width * m % self.head for m in self.mults):
            raise ValueError(f"heads of {self.head} do not cut every level's width evenly")


NETS = {
    "ddpm": UnetConfig(),
    "ddpm++": UnetConfig(mults=(2, 2, 2), blocks=4, resample="residual"),
    "ddpm++aug": UnetConfig(mults=(2, 2, 2), blocks=4, resample="residual", dropout=0.13, label=9),
    "tiny": UnetConfig(blocks=4, attention=(2,), resample="residual"),  # 64 px
    "adm256": UnetConfig(
        *(256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 64, "residual"),
        dropout=0.0,
        groups_out=32,
        modulation="scale_shift",
        code="adm",
        read="after",
    ),
}


class Place(NamedTuple):
    """What a block gives: [B, channels, H / factor, W / factor]."""

    channels: int
    factor: int


class Unet(nn.Module):
    """Images [B, C, H, W] and noise levels [B], as the network is to be told of them, to [B, out, H, W]."""

    def __init__(self, config: UnetConfig, channels: int, out: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.unet = _build(config, channels, out or channels)
        if config.label:
            self.label = nn.Linear(config.label, config.width, bias=False)
        self.encoder_blocks = (config.blocks + 1) * len(config.mults)  # N; the stem makes up for the last downsampler
        self.middle = self.encoder_blocks + 1
        self.last = 2 * self.encoder_blocks + 1
        self.places = dict(enumerate(_places(config), start=1))

    def mirror(self, block: int) -> int:
        """The encoder block whose output a decoder block reads, and the other way round."""
        return 2 * self.middle - block

    # -- the walk ------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, level: Tensor, label: Tensor | None = None, classes: Tensor | None = None) -> Tensor:
        for _, h in self.walk(x, level, label, classes=classes):  # noqa: B007 (the last output is what counts)
            pass
        return self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(h)))

    def read(
        self,
        x: Tensor,
        level: Tensor,
        blocks: Collection[int],
        add: Mapping[int, Tensor] | None = None,
        label: Tensor | None = None,
    ) -> dict[int, Tensor]:
        """Outputs [B, D, H', W'] of `blocks` from one pass, which ends with the last of them.

        `add` holds maps, by encoder block, to add to that block's output before it is handed on and kept for the
        decoder; they show in what is read of that block.
        """
        unknown = [b for b in (*blocks, *(add or ())) if b not in self.places]
        if unknown or any(b > self.encoder_blocks for b in add or ()):
            raise HarnessError(
                f"blocks {sorted(blocks)} of a U-Net, with maps added to {sorted(add or ())}",
                f"blocks from 1 to {self.last}, and maps for those up to {self.encoder_blocks}",
            )
        seen: dict[int, Tensor] = {}
        for block, h in self.walk(x, level, label, add):
            if block in blocks:
                seen[block] = h
            if len(seen) == len(set(blocks)):
                break
        return seen

    def guided(self, x: Tensor, level: Tensor, classes: Tensor, scale: float) -> Tensor:
        """`forward` moved `scale` times the way from no label to `classes` [B], in the noise (or the clean image).

        A variance, of ADM's layout, stays that of the class.
        """
        return guided(lambda *seen: self(*seen[:2], classes=seen[2]), x, level, classes, self.config.classes, scale)

    def walk(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        add: Mapping[int, Tensor] | None = None,
        classes: Tensor | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Every block's number and output, in order; a block is computed when it is asked for."""
        unet, add = self.unet, add or {}
        code = self.condition(level, label, classes)
        h = unet.conv_in(x)
        skips = []
        for block, parts in enumerate([(), *_encoder(unet)], start=1):
            for part in parts:
                h = _apply(part, h, code)
            if block in add:
                h = h + add[block]
            skips.append(h)
            yield block, h
        h = unet.mid_block(h, code)
        yield self.middle, h
        for block, (parts, upsampler) in enumerate(_decoder(unet), start=self.middle + 1):
            h = torch.cat([h, skips.pop()], dim=1)
            for part in parts:
                h = _apply(part, h, code)
            if upsampler is None:
                yield block, h
            elif self.config.read == "before":
                yield block, h
                h = _apply(upsampler, h, code)
            else:
                h = _apply(upsampler, h, code)
                yield block, h

    def condition(self, level: Tensor, label: Tensor | None = None, classes: Tensor | None = None) -> Tensor:
        """[B, 4 width] of noise levels [B], augmentation labels [B, label] and classes int64 [B].

        No augmentation label is one of zeros; no class is the table's last row.
        """
        unet = self.unet
        code = unet.time_proj(level).to(unet.conv_in.weight.dtype)
        if label is not None:
            code = code + self.label(label.to(code.dtype))
        code = unet.time_embedding(code)
        if not self.config.classes:
            return code
        if classes is None:
            classes = torch.full((len(code),), self.config.classes, device=code.device)
        return code + unet.class_embedding(classes)


def _apply(part: nn.Module, h: Tensor, code: Tensor) -> Tensor:
    return part(h, code) if hasattr(part, "time_emb_proj") else part(h)


def _encoder(unet: nn.Module) -> Iterator[tuple[nn.Module, ...]]:
    """The parts of each encoder block after the stem."""
    for level in unet.down_blocks:
        yield from _pairs(level)
        yield from ((part,) for part in level.downsamplers or ())


def _decoder(unet: nn.Module) -> Iterator[tuple[tuple[nn.Module, ...], nn.Module | None]]:
    """The parts of each decoder block, and the upsampler that follows it."""
    for level in unet.up_blocks:
        *others, last = _pairs(level)
        yield from ((parts, None) for parts in others)
        yield last, level.upsamplers[0] if level.upsamplers else None


def _pairs(level: nn.Module) -> list[tuple[nn.Module, ...]]:
    """Residual blocks, each with its attention where the level has it."""
    pairs = zip_longest(level.resnets, getattr(level, "attentions", ()))
    return [(resnet,) if attention is None else (resnet, attention) for resnet, attention in pairs]


# -- building ----------------------------------------------------------------------------------------------------------


def _build(c: UnetConfig, channels: int, out: int) -> nn.Module:
    """`UNet2DModel` by its settings; what they cannot say is put in afterwards (card ddae, section 15)."""
    from diffusers import UNet2DModel

    widths = tuple(c.width * m for m in c.mults)
    plain = {"conv": ("DownBlock2D", "UpBlock2D"), "residual": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")}
    kinds = [
        ("AttnDownBlock2D", "AttnUpBlock2D") if i in c.attention else plain[c.resample] for i in range(len(widths))
    ]
    sampler = "resnet" if c.resample == "residual" else "conv"
    unet = UNet2DModel(
        in_channels=channels,
        out_channels=out,
        block_out_channels=widths,
        down_block_types=tuple(down for down, _ in kinds),
        up_block_types=tuple(up for _, up in reversed(kinds)),
        layers_per_block=c.blocks,
        time_embedding_dim=4 * c.width,
        num_class_embeds=c.classes + 1 if c.classes else None,
        freq_shift=1 if c.code == "ddpm" else 0,
        flip_sin_to_cos=c.code == "adm",
        downsample_padding=1,
        downsample_type=sampler,
        upsample_type=sampler,
        dropout=c.dropout,
        attention_head_dim=c.head or None,
        norm_num_groups=c.groups,
        attn_norm_num_groups=c.groups,
        norm_eps=1e-5,
        resnet_time_scale_shift="default" if c.modulation == "shift" else "scale_shift",
    )
    unet.conv_norm_out = nn.GroupNorm(c.groups_out, widths[0], eps=1e-5)
    if widths[0] != c.width:
        _narrow_stem(unet, c, channels)
    for part in unet.modules():
        if hasattr(part, "set_processor"):
            part.set_processor(ByKernel())
    return unet


def _narrow_stem(unet: nn.Module, c: UnetConfig, channels: int) -> None:
    """The stem and the sinusoid of `width` below a wider first level, which `UNet2DModel` takes for one."""
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps
    from diffusers.models.resnet import ResnetBlock2D

    def resnet(width: int) -> nn.Module:
        scheme = "default" if c.modulation == "shift" else "scale_shift"
        return ResnetBlock2D(
            in_channels=width,
            out_channels=c.width * c.mults[0],
            temb_channels=4 * c.width,
            dropout=c.dropout,
            groups=c.groups,
            eps=1e-5,
            time_embedding_norm=scheme,
        )

    unet.conv_in = nn.Conv2d(channels, c.width, 3, padding=1)
    unet.time_proj = Timesteps(c.width, c.code == "adm", 1 if c.code == "ddpm" else 0)
    unet.time_embedding = TimestepEmbedding(c.width, 4 * c.width)
    unet.down_blocks[0].resnets[0] = resnet(c.width)
    unet.up_blocks[-1].resnets[-1] = resnet(c.width * (c.mults[0] + 1))


def _places(c: UnetConfig) -> Iterator[Place]:
    """What every block gives, from the first."""
    levels = [Place(c.width * m, 2**i) for i, m in enumerate(c.mults)]
    yield Place(c.width, 1)
    for i, place in enumerate(levels):
        yield from [place] * c.blocks
        if place is not levels[-1]:
            yield place._replace(factor=2 ** (i + 1))
    yield levels[-1]
    for place in reversed(levels):
        yield from [place] * c.blocks
        above = place.factor // 2 if c.read == "after" and place.factor > 1 else place.factor
        yield place._replace(factor=above)
