"""OpenAI's unconditional ADM as a method: features from any block of the decoder under noise, ancestral samples.

Dhariwal & Nichol 2021, guided-diffusion's file `256x256_diffusion_uncond.pt`; card difformer_diffeed, section 2. It is
the backbone that DifFormer and DifFeed read; blocks are numbered as they do (backbones/unet.py).

Shapes: B images, C channels, S side, D width of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from backbones.adm_unet import HEAD, config_of, mapped
from backbones.diffusion import Diffusion, T
from backbones.learned_variance import ancestral
from backbones.official import settle, shape_of
from backbones.unet import Unet, UnetConfig
from harness.config import override, plain
from harness.errors import HarnessError
from harness.method import DataSpec, Method, Tap, require_taps
from harness.rng import Rng

if TYPE_CHECKING:
    from backbones.heads import Measures
    from harness.released.formats import Asked, Loaded

NOISES = (90, 150, 300, 10)  # levels that features are read at, the paper's of DifFormer first; and the clean image
COARSEST = 8  # px of the last level, in every released model
RECIPE = "ADM: AdamW at 1e-4, about 2M steps of 256 images of ImageNet-1k"


@dataclass(frozen=True)
class Config:
    size: int = 0  # px; 0 is what the number of levels comes to: 64, 128, 256 px for 4, 5, 6
    head: int = HEAD  # channels of an attention head
    steps: int = 250  # of sampling
    net: UnetConfig | None = None  # what the tensors say

    def __post_init__(self) -> None:
        if self.size < 0 or self.head < 1 or not 1 <= self.steps <= T:
            raise ValueError(f"size and head are positive, steps from 1 to {T}")


class Adm(Method):
    """The U-Net with its linear schedule; levels are counted from 0, and the network is told them as they are."""

    Config = Config

    def __init__(self, config: Config, data: DataSpec, out: int) -> None:
        super().__init__()
        self.config, self.data = config, data
        self.network = Unet(config.net, data.channels, out)
        self.learned = out > data.channels
        self.diffusion = Diffusion("linear")

    # -- recognise ------------------------------------------------------------------------------------------------

    def taps(self) -> list[Tap]:
        """Any block from the middle on, at four noises or clean; the first four are about the paper's optimum."""
        last = self.network.last
        middle, usual, later = self._fused()
        first = [(usual, 90), (usual, 150), (later, 90), (middle, 90)]
        every = [(block, noise) for block in range(middle, last + 1) for noise in (*NOISES, None)]
        return [Tap(f"block{block}", noise) for block, noise in dict.fromkeys([*first, *every])]

    def fusion(self) -> list[list[Tap]]:
        """DifFormer's: three blocks at each of three levels."""
        return [[Tap(f"block{block}", noise) for block in self._fused()] for noise in NOISES[:3]]

    def feedback_head(self, classes: int, measures: Measures) -> nn.Module:
        """DifFeed's, at the paper's block and level."""
        from backbones.feedback import feedback_head

        def noised(images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
            level = torch.full((len(images),), 150, device=images.device)
            return self.diffusion.noised(images, level, rng.normal("noise", images.shape)), level

        return feedback_head(self.network, noised, self._fused()[1], self.data.size, classes, measures)

    def _fused(self) -> tuple[int, int, int]:
        """The paper's blocks 19, 24 and 30 of 37, or what lies there in a smaller network."""
        middle, levels = self.network.middle, self.network.encoder_blocks
        return middle, middle + round(5 / 18 * levels), middle + round(11 / 18 * levels)

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        require_taps(self, taps)
        passes = {
            noise: self._read(images, noise, {_block(tap) for tap in taps if tap.noise == noise}, rng)
            for noise in dict.fromkeys(tap.noise for tap in taps)
        }
        maps = [passes[tap.noise][_block(tap)].float() for tap in taps]
        return maps if dense else [found.mean(dim=(2, 3)) for found in maps]

    def _read(self, images: Tensor, noise: int | None, blocks: set[int], rng: Rng) -> dict[int, Tensor]:
        """The maps [B, D, H', W'] of `blocks`, from one pass that ends with the last of them."""
        level = torch.full((len(images),), noise or 0, device=images.device)
        if noise is not None:
            images = self.diffusion.noised(images, level, rng.at("tap", noise).normal("noise", images.shape))
        return self.network.read(images, level, blocks)

    # -- draw -----------------------------------------------------------------------------------------------------

    def sampler(self, steps: int | None = None) -> str:
        return f"ancestral, {self.config.steps if steps is None else steps} steps"

    @torch.no_grad()
    def sample(self, n: int, rng: Rng, labels: Tensor | None = None, steps: int | None = None) -> Tensor:
        """The reference's: respaced ancestral steps with the learned variance, the clean estimate clipped."""
        if labels is not None:
            raise HarnessError("labels given to an unconditional ADM", "no labels")
        shape = (n, self.data.channels, self.data.size, self.data.size)
        levels = self.diffusion.respaced(self.config.steps if steps is None else steps)

        def denoise(x: Tensor, k: int) -> Tensor:
            found = self.network(x, torch.full((n,), k, device=x.device)).to(x.dtype)
            return found if self.learned else torch.cat([found, torch.ones_like(found)], dim=1)

        def noise(step: int) -> Tensor:
            return rng.at("step", step).normal("noise", shape)

        return ancestral(self.diffusion, denoise, rng.normal("start", shape), levels, noise, clip=True).clamp(-1, 1)


def _block(tap: Tap) -> int:
    return int(tap.layer.removeprefix("block"))


def load(asked: Asked) -> Loaded:
    """The network with its weights. Raises HarnessError for a state dict that is no unconditional ADM's."""
    from harness.released import files
    from harness.released.formats import Loaded, require_whole, stated

    weights = files.read(Path(asked.checkpoint))
    chosen = files.choose(weights, asked.weights)
    method, missing, unexpected = _built(override(Config(), asked.settings.get("adm", {}), "adm"), chosen.state)
    unexpected = sorted([*unexpected, *chosen.strange])
    require_whole(weights.name, missing, (), [] if asked.allow_unexpected else unexpected)
    return Loaded(
        method,
        "adm",
        draws=True,
        file=weights.name,
        sha256=weights.sha256,
        format="adm",
        entry=chosen.entry,
        kind=chosen.kind,
        config=plain(method.config),
        unexpected=unexpected,
        notes=[f"attention heads of {method.config.head} channels by convention"],
        recipe=stated(RECIPE),
    )


def _built(config: Config, state: Mapping[str, Tensor]) -> tuple[Adm, list[str], list[str]]:
    """The method with its tensors in place, and the names of those that it or the file lacks."""
    net = config_of(state, config.head)
    channels = shape_of(state, "input_blocks.0.0.weight", 4, "ADM")[1]
    out = shape_of(state, "out.2.weight", 4, "ADM")[0]
    if out not in (channels, 2 * channels):
        raise HarnessError(f"{out} channels out of {channels}", f"{channels}, or {2 * channels} with the variance")
    size = config.size or COARSEST * 2 ** (len(net.mults) - 1)
    config = replace(config, net=net, size=size)
    settled = settle(lambda: Unet(net, channels, out), "network.", mapped(state, net))
    method = Adm(config, DataSpec("released", channels, size, 0), out)
    method.load_state_dict(settled.state, strict=False)
    return method.eval(), settled.missing, settled.unexpected
