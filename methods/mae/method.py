"""MAE: drop 75 % of an image's patches, encode the rest, predict the dropped pixels.

He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv 2111.06377; see the card in
methods/mae/README.md. Measured: the loss on dropped patches, and the encoder's features of the whole image. Borrows
nothing. The paper has no sampler; `sample` is ours and leaves the objective alone (backbones/unmasking.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backbones.masked_autoencoder import DECODERS, NORM_LEAST, MaskedAutoencoder
from backbones.sizes import TOKENS_ACROSS, TRUNKS, Trunk, patch_size
from backbones.tokens import drop_under, dropped_pixels, kept_tokens, random_drop
from backbones.unmasking import Unmasking
from harness.errors import HarnessError
from harness.method import Augment, Batch, DataSpec, Loss, Method, Optim, Reconstruction, Tap, require_taps
from harness.rng import Rng

# Shapes: B batch, C channels, H = W image side, N tokens, P numbers in a patch, D encoder width.


@dataclass(frozen=True)
class Config:
    patch: int = 16  # pixels
    encoder: Trunk = TRUNKS["b"]
    decoder: Trunk = DECODERS["b"]
    mask_ratio: float = 0.75
    norm_pix: bool = True  # the target patch standardised by its own mean and variance
    base_lr: float = 1.5e-4  # per 256 images of a batch
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of the budget; 40 of 800 epochs
    crop: tuple[float, float] = (0.2, 1.0)  # area of the random crop
    # The sampler, ours: not from the paper.
    rounds: int = 12  # in which a picture is revealed
    temperature: float = 1.0  # of the noise on each revealed patch
    sampler_every: int = 8  # steps between updates of the sampler's statistics; 0 turns them and `sample` off
    sampler_images: int = 16  # of the batch, in one update

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError("mask_ratio lies between 0 and 1")
        if min(self.rounds, self.sampler_images) < 1 or self.sampler_every < 0:
            raise ValueError("rounds and sampler_images are at least 1, sampler_every at least 0")


class Mae(Method):
    Config = Config

    @classmethod
    def recipe(cls, size: str, data: DataSpec) -> Config:
        # The paper's rate is for 800 epochs at batch 4096; budgets of minutes at batch 128 need a larger one.
        base_lr = {"nano": 4e-3, "ti": 2e-3}.get(size, Config.base_lr)
        patch = patch_size(data.size, TOKENS_ACROSS[size])
        # Standardising four numbers leaves two: digits in patches of 2 x 2 are predicted as they are.
        norm_pix = patch * patch * data.channels >= NORM_LEAST
        return Config(patch, TRUNKS[size], DECODERS[size], norm_pix=norm_pix, base_lr=base_lr)

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        self.config, self.data = config, data
        self.core = MaskedAutoencoder(
            data.channels, data.size, config.patch, config.encoder, config.decoder, norm_target=config.norm_pix
        )
        self.unmasking = Unmasking(self.core) if config.sampler_every else None

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        patches = self.core.patches(batch.images)  # [B, N, P]
        drop = self._drop(patches, self.config.mask_ratio, rng)
        loss = self.core.loss(patches, drop)
        if self.unmasking and self.training and rng.number("unmasking") % self.config.sampler_every == 0:
            # Statistics that the loss does not read: where processes share a batch, the first one's images serve.
            self.unmasking.update(self.core, patches[: self.config.sampler_images], rng.alone.at("unmasking"))
        return Loss(loss, {"masked_mse": loss.detach()})

    def _drop(self, patches: Tensor, ratio: float, rng: Rng):
        b, n, _ = patches.shape
        return random_drop(rng.uniform("mask", (b, n)).to(patches.device), kept_tokens(n, ratio))

    def optim(self, batch_size: int) -> Optim:
        config = self.config
        return Optim(
            lr_peak=config.base_lr * batch_size / 256,
            betas=config.betas,
            weight_decay=config.weight_decay,
            warmup=config.warmup,
        )

    def augment(self) -> Augment:
        return Augment(crop=self.config.crop)

    def taps(self) -> list[Tap]:
        return self.core.taps()

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        require_taps(self, taps)
        return self.core.features(self.core.patches(images), taps, dense)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, hide: float | Tensor, rng: Rng) -> Reconstruction:
        """With `norm_pix` the predicted patches carry the true ones' mean and deviation."""
        patches = self.core.patches(images)
        drop = drop_under(hide, patches) if isinstance(hide, Tensor) else self._drop(patches, hide, rng)
        filled = self.core.image(self.core.complete(patches, drop)).clamp(-1, 1)
        return Reconstruction(filled, dropped_pixels(drop, self.data.size), self.core.oracle)

    def sampler(self, steps: int | None = None) -> str:
        return f"patches revealed in random order, {self.config.rounds if steps is None else steps} rounds"

    def sample(self, n: int, rng: Rng, labels: Tensor | None = None, steps: int | None = None) -> Tensor:
        if labels is not None:
            raise HarnessError("labels given to MAE", "no labels")
        if self.unmasking is None:
            raise HarnessError("this MAE was trained without the sampler's statistics", "mae.sampler_every above 0")
        rounds, temperature = self.config.rounds if steps is None else steps, self.config.temperature
        return self.core.image(self.unmasking.draw(self.core, n, rounds, rng, temperature, bounds=(-1.0, 1.0)))


METHOD = Mae
