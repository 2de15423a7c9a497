"""Starter: a ViT removes noise from images; what it has to know for that are its features.

Replace this sentence, and what you need of the file. As it stands it is a denoising autoencoder on patches, after
Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders", ICML 2008. Measured: the squared
error of the clean image, and the features of the noiseless one. Borrows nothing.
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
from backbones.tokens import patchify, sincos_2d, unpatchify
from harness.errors import HarnessError
from harness.method import Augment, Batch, DataSpec, Loss, Method, Optim, Tap, require_taps
from harness.rng import Rng

# Shapes: B batch, C channels, H = W image side, N tokens, P numbers in a patch, D width, h = w tokens along a side.


@dataclass(frozen=True)
class Config:
    """Every number that a paper would list; `starter.NAME=VALUE` on the command line sets one."""

    patch: int = 16  # pixels
    trunk: Trunk = TRUNKS["b"]
    base_lr: float = 1e-3  # per 256 images of a batch
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of the budget
    crop: tuple[float, float] = (0.2, 1.0)  # area of the random crop
    rounds: int = 20  # of the sampler


class Starter(Method):
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
        self.predict = nn.Linear(width, numbers)

    # -- the objective ------------------------------------------------------------------------------------------

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        clean = batch.images  # [B, C, H, W] in [-1, 1]
        level = rng.uniform("level", (len(clean), 1, 1, 1)).to(clean.device)  # 0 is the image, 1 is noise alone
        noise = rng.normal("noise", clean.shape).to(clean.device)
        loss = F.mse_loss(self.denoised((1 - level) * clean + level * noise), clean)
        return Loss(loss, {"mse": loss.detach()})

    def denoised(self, images: Tensor) -> Tensor:
        """The clean images [B, C, H, W] that the network sees in noisy ones."""
        return unpatchify(self.predict(self.norm(self.states(images)[-1])), self.config.patch)

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
        return Augment(crop=self.config.crop)

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

    # -- draw ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, rng: Rng, labels: Tensor | None = None, steps: int | None = None) -> Tensor:
        """From noise alone: each round sees what is clean in the picture, and adds less noise to it than was there."""
        if labels is not None:
            raise HarnessError("labels given to Starter", "no labels")
        shape = (n, self.data.channels, self.data.size, self.data.size)
        rounds = self.config.rounds if steps is None else steps
        picture = rng.normal("start", shape).to(self.positions.device)
        for left in reversed(range(rounds)):
            level = left / rounds
            noise = rng.at("round", left).normal("noise", shape).to(picture.device)
            picture = (1 - level) * self.denoised(picture) + level * noise
        return picture.clamp(-1, 1)

    def sampler(self, steps: int | None = None) -> str:
        return f"denoised and noised again, {self.config.rounds if steps is None else steps} rounds"


METHOD = Starter
