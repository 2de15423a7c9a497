"""SimCLR: two views of an image are to have features that are alike, and unlike those of all other images.

Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020
(section 2). The worked example of docs/adding-a-method.md. Borrows nothing; it cannot draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.attention import Attention
from backbones.sizes import TOKENS_ACROSS, TRUNKS, Trunk, patch_size
from backbones.tokens import patchify, sincos_2d
from harness.data.augment import draw, resample
from harness.method import Augment, Batch, DataSpec, Loss, Method, Optim, Tap, require_taps
from harness.rng import Rng

# Shapes: B batch, C channels, H = W image side, N tokens, D width, P width of the projection.


@dataclass(frozen=True)
class Config:
    """Every number that a paper would list; `simclr.NAME=VALUE` on the command line sets one."""

    patch: int = 16  # pixels
    trunk: Trunk = TRUNKS["b"]
    projection: int = 128
    temperature: float = 0.1  # of the paper's table 5 the best; it has 0.5 for CIFAR-10
    crop: tuple[float, float] = (0.08, 1.0)  # area of a view's crop
    strength: float = 0.5  # of the colour distortion; the paper's for CIFAR-10
    grey: float = 0.2  # chance that a view loses its colours
    base_lr: float = 1e-3  # per 256 images of a batch
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of the budget


class Simclr(Method):
    Config = Config

    @classmethod
    def recipe(cls, size: str, data: DataSpec) -> Config:
        return Config(patch_size(data.size, TOKENS_ACROSS[size]), TRUNKS[size])

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        self.config, self.data = config, data
        width, depth, heads = config.trunk
        numbers = data.channels * config.patch**2
        self.across = data.size // config.patch
        self.embed = nn.Linear(numbers, width)
        self.register_buffer("positions", sincos_2d(width, self.across))
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, attn_layer=Attention) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.BatchNorm1d(width),  # without it views start alike, and the loss stays where it is
            nn.ReLU(),
            nn.Linear(width, config.projection),
        )

    # -- the objective ------------------------------------------------------------------------------------------

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        """Section 2.1, algorithm 1."""
        views = [self.view(batch.images, rng.at("view", which)) for which in (0, 1)]
        loss = self.contrast(self.project(self.pooled(torch.cat(views))))
        return Loss(loss, {"nt-xent": loss.detach()})

    def contrast(self, projected: Tensor) -> Tensor:
        """NT-Xent of [2B, P]: row i and row i + B are two views of one image."""
        z = F.normalize(projected.float(), dim=1)
        alike = z @ z.T / self.config.temperature
        alike.fill_diagonal_(float("-inf"))  # nothing is compared with itself
        other = torch.arange(len(z), device=z.device).roll(len(z) // 2)
        return F.cross_entropy(alike, other)

    def view(self, images: Tensor, rng: Rng) -> Tensor:
        """A crop of each image [B, C, H, W], with its colours distorted; each image has draws of its own."""
        spec = Augment(crop=self.config.crop, mirror=False)  # mirrored it was already, where the data set allows that
        boxes = draw(len(images), images.shape[-1], spec, False, rng.to(images.device))
        return self.distorted(resample(images, boxes, spec.interpolation), rng)

    def distorted(self, images: Tensor, rng: Rng) -> Tensor:
        """Brightness, contrast and saturation by factors of 1 ± 0.8 strength, and sometimes no colours at all."""
        ones, reach = (len(images), 1, 1, 1), 0.8 * self.config.strength
        by = {
            name: (1 - reach + 2 * reach * rng.uniform(name, ones)).to(images.device)
            for name in ("brightness", "contrast", "saturation")
        }
        x = (images + 1) / 2 * by["brightness"]
        middle = x.mean(dim=(1, 2, 3), keepdim=True)
        x = middle + (x - middle) * by["contrast"]
        greyed = x.mean(dim=1, keepdim=True)
        colourless = (rng.uniform("grey", ones) < self.config.grey).to(images.device)
        x = torch.where(colourless, greyed.expand_as(x), greyed + (x - greyed) * by["saturation"])
        return x.clamp(0, 1) * 2 - 1

    def pooled(self, images: Tensor) -> Tensor:
        """The mean token [B, D] after the last norm."""
        return self.norm(self.states(images)[-1]).mean(dim=1)

    def states(self, images: Tensor) -> list[Tensor]:
        """Tokens [B, N, D] after each block."""
        tokens, states = self.embed(patchify(images, self.config.patch)) + self.positions, []
        for block in self.blocks:
            tokens = block(tokens)
            states.append(tokens)
        return states

    def optim(self, batch_size: int) -> Optim:
        config = self.config
        rate = config.base_lr * batch_size / 256
        return Optim(rate, weight_decay=config.weight_decay, warmup=config.warmup)

    def augment(self) -> Augment:
        return Augment()  # mirrored where the data set allows it; views are cropped in `view`

    # -- recognise ----------------------------------------------------------------------------------------------

    def taps(self) -> list[Tap]:
        """Every quarter of the blocks, the last ones first."""
        depth = len(self.blocks)
        return [Tap(f"block{depth * quarters // 4}") for quarters in (4, 3, 2, 1)]

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        """The mean token [B, D] of each tap; with `dense`, all of them as maps [B, D, h, w]."""
        require_taps(self, taps)
        states = self.states(images)
        read = [states[int(tap.layer.removeprefix("block")) - 1].float() for tap in taps]
        if dense:
            return [tokens.mT.unflatten(2, (self.across, self.across)) for tokens in read]
        return [tokens.mean(dim=1) for tokens in read]


METHOD = Simclr
