"""LMD: a masked autoencoder on VAE latents whose mask ratio rises while it trains, from 0.15 to 0.75.

Ma et al., "LMD: Faster Image Reconstruction with Latent Masking Diffusion", AAAI 2024, arXiv 2312.07971; see the card
in methods/lmd/README.md. Measured: the loss on dropped latent patches, and the encoder's features of the whole latent.
Needs a VAE: trained here within the budget (account `prepare`), or borrowed and declared. The sources have no sampler;
`sample` is ours and leaves the objective alone (backbones/unmasking.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from backbones.masked_autoencoder import DECODERS, NORM_LEAST, MaskedAutoencoder
from backbones.on_latents import OnLatents, build_vae
from backbones.sizes import TRUNKS, Trunk
from backbones.tokens import Drop, drop_under, dropped_pixels, kept_tokens, random_drop
from backbones.unmasking import Unmasking
from backbones.vae import VaeConfig
from harness.errors import HarnessError
from harness.method import (
    Augment,
    Batch,
    DataSpec,
    Loss,
    Optim,
    Reconstruction,
    Tap,
    require_taps,
)
from harness.rng import Rng

# Shapes: B batch, C channels, H image side, Z latent channels, h latent side, N tokens, P numbers in a latent patch.

Schedule = Literal["cosine", "piecewise", "linear", "constant"]
SHORT = {"nano": (4e-3, 32), "ti": (2e-3, 64)}  # sizes for budgets of minutes: base rate, the VAE's batch
BETAS = {"adan": 3, "adamw": 2}  # how many each optimizer takes


@dataclass(frozen=True)
class Config:
    vae: str = "CompVis/stable-diffusion-v1-4"  # hub name, folder, "taef2:FOLDER", or "train" (ours)
    vae_side: int = 0  # px that images are resized to before a borrowed VAE; 0 is the nearest that fits
    vae_width: Literal["nano", "ti", "s", "b", "l", "xl"] = "s"  # of a VAE trained here
    vae_share: float = 0.2  # of the budget, for training the VAE; only with vae = "train"
    vae_training: VaeConfig = VaeConfig()  # noqa: RUF009 (frozen)
    views: Literal[0, 1, 2] = 0  # cached latents per image, 2 with the mirrored one; 0: random crops at every step
    tokens_across: int = 7  # latents 28 across in patches of 4; the patch is the power of two that comes nearest
    encoder: Trunk = TRUNKS["b"]
    decoder: Trunk = DECODERS["b"]
    schedule: Schedule = "cosine"
    ratio_start: float = 0.15
    ratio_middle: float = 0.40  # of the piecewise schedule
    ratio_end: float = 0.75
    ramp: float = 2 / 3  # share of the training (what preparation leaves) at which ratio_end is reached
    norm_target: bool = True  # the target patch standardised by its own mean and variance ...
    norm_least: int = 2  # ... where it has that many numbers
    optimizer: Literal["adan", "adamw"] = "adan"
    base_lr: float = 3e-4  # per 256 images of a batch
    betas: tuple[float, ...] = (0.98, 0.92, 0.90)
    weight_decay: float = 0.05
    clip_norm: float = 10.0
    warmup: float = 0.05  # share of the training; the script has one epoch
    crop: tuple[float, float] = (0.2, 1.0)  # area of the random crop, where latents are not cached
    # The sampler, ours: not from the paper.
    rounds: int = 12  # in which a latent is revealed
    temperature: float = 1.0  # of the noise on each revealed patch
    sampler_every: int = 8  # steps between updates of the sampler's statistics; 0 turns them and `sample` off
    sampler_images: int = 16  # of the batch, in one update

    def __post_init__(self) -> None:
        ratios = (self.ratio_start, self.ratio_middle, self.ratio_end)
        if not 0 < min(ratios) <= max(ratios) < 1:
            raise ValueError("mask ratios lie between 0 and 1")
        if self.vae == "none":
            raise ValueError("LMD without a VAE is MAE: lmd.vae is train, taef2:FOLDER, a folder or a hub name")
        if not 0 < self.ramp <= 1 or not 0 < self.vae_share < 1:
            raise ValueError("ramp and vae_share are shares of the budget")
        if self.norm_least < 2:
            raise ValueError("a patch of one number has no variance: norm_least is at least 2")
        if len(self.betas) != BETAS[self.optimizer]:
            raise ValueError(
                f"{self.optimizer} takes {BETAS[self.optimizer]} betas, not {len(self.betas)}: "
                "adan 0.98,0.92,0.9; adamw 0.9,0.95"
            )
        if min(self.rounds, self.sampler_images) < 1 or self.sampler_every < 0:
            raise ValueError("rounds and sampler_images are at least 1, sampler_every at least 0")


def mask_ratio(progress: float, config: Config) -> float:
    """The share of tokens dropped at `progress` of the training, that is, of what preparation leaves of the budget
    (card lmd, section 3)."""
    start, middle, end = config.ratio_start, config.ratio_middle, config.ratio_end
    u = progress / config.ramp
    if config.schedule == "constant" or u >= 1:
        return end
    if config.schedule == "linear":
        return start + (end - start) * u
    if config.schedule == "cosine":
        return start + (end - start) * (1 - _alpha_bar(u) / _alpha_bar(0.0))
    if u < 0.25:  # piecewise: rise, hold, rise, hold
        return start + (middle - start) * u / 0.25
    return middle + (end - middle) * max(0.0, (u - 0.5) / 0.5)


def _alpha_bar(u: float) -> float:
    """The signal left of the improved-DDPM cosine noise schedule."""
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def latent_patch(side: int, tokens_across: int) -> int:
    """The power of two, 1 included, that divides a latent `side` into about `tokens_across` patches."""
    powers = [p for p in (1, 2, 4, 8, 16) if side % p == 0]
    return min(powers, key=lambda p: (abs(side / p - tokens_across), p))


class Lmd(OnLatents):
    Config = Config

    @classmethod
    def recipe(cls, size: str, data: DataSpec) -> Config:
        # A VAE of our own needs no network; its latents are cached, because encoding costs more than the method.
        config = Config(
            vae="train",
            vae_width=size,
            views=2,
            encoder=TRUNKS[size],
            decoder=DECODERS[size],
            norm_least=NORM_LEAST,  # standardising a patch of four numbers leaves two
        )
        if size not in SHORT:
            return config
        # The script is for hundreds of epochs. A budget of minutes buys a few thousand steps at most: Adan then lost
        # to the untrained network, and a VAE needs small ones to take many (README, "What was tried").
        base_lr, vae_batch = SHORT[size]
        training = VaeConfig(batch_size=vae_batch)
        return replace(config, optimizer="adamw", betas=(0.9, 0.95), base_lr=base_lr, vae_training=training)

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        self.config, self.data = config, data
        self.vae = build_vae(config, data)
        patch = latent_patch(self.vae.latent_side, config.tokens_across)
        self.core = MaskedAutoencoder(
            self.vae.channels,
            self.vae.latent_side,
            patch,
            config.encoder,
            config.decoder,
            decoder_position=-1,
            norm_target=config.norm_target and self.vae.channels * patch**2 >= config.norm_least,
        )
        self.unmasking = Unmasking(self.core) if config.sampler_every else None

    @torch.no_grad()
    def _patches(self, images: Tensor) -> Tensor:
        return self.core.patches(self.vae.encode(images))

    # -- objective ----------------------------------------------------------------------------------------------

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        cached = batch.latents is not None
        patches = self.core.patches(batch.latents.float()) if cached else self._patches(batch.images)  # [B, N, P]
        ratio = mask_ratio(progress, self.config)
        loss = self.core.loss(patches, self._drop(patches, ratio, rng))
        if self.unmasking and self.training and rng.number("unmasking") % self.config.sampler_every == 0:
            # Statistics that the loss does not read: where processes share a batch, the first one's images serve.
            self.unmasking.update(self.core, patches[: self.config.sampler_images], rng.alone.at("unmasking"))
        return Loss(loss, {"masked_mse": loss.detach(), "mask_ratio": torch.tensor(ratio)})

    def _drop(self, patches: Tensor, ratio: float, rng: Rng) -> Drop:
        b, n, _ = patches.shape
        return random_drop(rng.uniform("mask", (b, n)).to(patches.device), kept_tokens(n, ratio))

    def optim(self, batch_size: int) -> Optim:
        config = self.config
        return Optim(
            lr_peak=config.base_lr * batch_size / 256,
            name=config.optimizer,
            betas=config.betas,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            warmup=config.warmup,
        )

    def augment(self) -> Augment:
        """Cached latents rule out random crops: what is left of them is the mirrored view."""
        views = self.config.views
        return Augment(crop=(1.0, 1.0), mirror=views > 1) if views else Augment(crop=self.config.crop)

    # -- recognise and draw -------------------------------------------------------------------------------------

    def taps(self) -> list[Tap]:
        return self.core.taps()

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        require_taps(self, taps)
        return self.core.features(self._patches(images), taps, dense)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, hide: float | Tensor, rng: Rng) -> Reconstruction:
        """Hides latent patches, and decodes the whole: what was not hidden has passed the VAE.

        With `norm_target` the predicted patches carry the true ones' mean and deviation.
        """
        patches = self._patches(images)
        drop = drop_under(hide, patches) if isinstance(hide, Tensor) else self._drop(patches, hide, rng)
        filled = self._image(self.core.complete(patches, drop))
        return Reconstruction(filled, dropped_pixels(drop, self.data.size), self.core.oracle)

    def sampler(self, steps: int | None = None) -> str:
        return f"latent patches revealed in random order, {self.config.rounds if steps is None else steps} rounds"

    @torch.no_grad()
    def sample(self, n: int, rng: Rng, labels: Tensor | None = None, steps: int | None = None) -> Tensor:
        if labels is not None:
            raise HarnessError("labels given to LMD", "no labels")
        if self.unmasking is None:
            raise HarnessError("this LMD was trained without the sampler's statistics", "lmd.sampler_every above 0")
        rounds, temperature = self.config.rounds if steps is None else steps, self.config.temperature
        return self._image(self.unmasking.draw(self.core, n, rounds, rng, temperature))

    def _image(self, patches: Tensor) -> Tensor:
        return self.vae.decode(self.core.image(patches)).clamp(-1, 1)


METHOD = Lmd
