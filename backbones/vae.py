"""Variational autoencoders behind one face: trained here, from diffusers' hub or a folder, or TAEF2.

Latents are the mode of the posterior and carry no scaling factor (card lmd, section 1).

Shapes: B batch, C channels, H image side, Z latent channels, h latent side.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.errors import HarnessError
from harness.method import Batch, Loss, Objective, Optim
from harness.rng import Rng

WIDTHS = {"nano": 32, "ti": 32, "s": 64, "b": 128, "l": 128, "xl": 128}  # of the first level; later ones are twice that
LATENT_CHANNELS = 16  # but never more numbers than the pixels they stand for
SMALLEST_LATENT = 4
FOLD = 2  # pixels a side that our own VAE moves into channels first: convolutions at full size cost most and add least


class Vae(nn.Module):
    """`encode` and `decode` for images [B, C, H, H] in [-1, 1] of one size."""

    def __init__(
        self,
        network: nn.Module,
        channels: int,
        factor: int,
        image_channels: int,
        image_size: int,
        borrowed: str | None = None,
        side: int = 0,
        fold: int = 1,  # pixels a side that become channels before `network`; `factor` is the whole's
    ) -> None:
        super().__init__()
        self.network, self.channels, self.factor, self.borrowed = network, channels, factor, borrowed
        self.fold = fold
        self.image_channels, self.image_size = image_channels, image_size
        self.side = side or _working_side(image_size, factor)
        if self.side % factor:
            raise HarnessError(
                f"images of {self.side} px do not fit a VAE that works in {factor} px", "a multiple of it"
            )
        self.requires_grad_(False)

    @property
    def parameters_borrowed(self) -> int:
        return sum(p.numel() for p in self.parameters()) if self.borrowed else 0

    @property
    def latent_side(self) -> int:
        return self.side // self.factor

    def encode(self, images: Tensor) -> Tensor:
        """[B, C, H, H] to [B, Z, h, h], the posterior's mode."""
        code = self.code(images)
        return (code.latent_dist.mode() if hasattr(code, "latent_dist") else code.latents).float().contiguous()

    def code(self, images: Tensor) -> Any:
        """What the network's own `encode` returns: a posterior, or latents where it has none."""
        with self._precision(images):
            images = F.pixel_unshuffle(self._fit_in(images), self.fold)
            if not torch.is_autocast_enabled(images.device.type):  # float32 convolutions are nearly twice as fast
                images = images.contiguous(memory_format=torch.channels_last)
            return self.network.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, Z, h, h] to [B, C, H, H], not clamped."""
        with self._precision(latents):
            return self._fit_out(F.pixel_shuffle(self.network.decode(latents).sample.float(), self.fold))

    def _precision(self, x: Tensor) -> torch.autocast:
        """Borrowed weights run in float32, as LMD's reference does; ours in the precision they were trained in."""
        device = x.device.type
        return torch.autocast(device, enabled=self.borrowed is None and torch.is_autocast_enabled(device))

    def _fit_in(self, images: Tensor) -> Tensor:
        if self.side != self.image_size:
            images = F.interpolate(images, self.side, mode="bicubic", antialias=True).clamp(-1, 1)
        if self.borrowed and self.image_channels == 1:
            images = images.expand(-1, 3, -1, -1)
        return images

    def _fit_out(self, images: Tensor) -> Tensor:
        if self.borrowed and self.image_channels == 1:
            images = images.mean(dim=1, keepdim=True)
        if self.side != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bicubic", antialias=True)
        return images


def _working_side(image_size: int, factor: int) -> int:
    """The smallest multiple of `factor` that holds the image and gives a latent of at least 4 x 4."""
    return factor * max(SMALLEST_LATENT, -(-image_size // factor))


def small_kl(image_channels: int, image_size: int, size: str) -> Vae:
    """An untrained AutoencoderKL for one size of image: 2x down for the smallest, 4x, or 8x from 128 px on.

    Every `FOLD` x `FOLD` pixels are one place of that many more channels to it; the rest of the way it goes by its own
    strides. What else was tried stands in methods/lmd/README.md.
    """
    from diffusers import AutoencoderKL

    least = SMALLEST_LATENT
    fitting = [
        f for f in (2, 4, 8) if image_size % f == 0 and image_size // f >= least and (f < 8 or image_size >= 128)
    ]
    if not fitting:
        raise HarnessError(f"no small VAE for images of {image_size} px", "an even side of at least 8 px")
    factor, width = max(fitting), WIDTHS[size]
    latent_channels = min(LATENT_CHANNELS, factor**2 * image_channels)
    levels = (factor // FOLD).bit_length()
    network = AutoencoderKL(
        in_channels=image_channels * FOLD**2,
        out_channels=image_channels * FOLD**2,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(width,) + (2 * width,) * (levels - 1),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=image_size // FOLD,
        mid_block_add_attention=False,
    )
    return Vae(network, latent_channels, factor, image_channels, image_size, fold=FOLD)


def pretrained_kl(name: str, image_channels: int, image_size: int, side: int = 0) -> Vae:
    """A diffusers AutoencoderKL by hub name or from a folder, in float32. Reads what is on this machine only."""
    from diffusers import AutoencoderKL

    _rgb(image_channels)
    network, reasons = None, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hub arguments that diffusers itself passes
        for subfolder in (None, "vae"):  # a VAE by itself, or the part of a pipeline
            try:
                network = AutoencoderKL.from_pretrained(
                    name, subfolder=subfolder, local_files_only=True, torch_dtype=torch.float32
                )
                break
            except (OSError, ValueError) as error:
                reasons.append(str(error).strip().splitlines()[0])
    if network is None:
        raise HarnessError(
            f"the VAE {name!r} is not on this machine: {reasons[0]}",
            "a folder with a diffusers AutoencoderKL, or a hub name that has been fetched",
            f"hf download {name} where there is a network; or leave out lmd.vae to train a VAE within the budget",
        )
    if (inputs := network.config.in_channels) != 3:
        raise HarnessError(f"the VAE {name!r} takes {inputs} channels", "a colour VAE")
    factor = 2 ** (len(network.config.block_out_channels) - 1)
    channels = network.config.latent_channels
    return Vae(network, channels, factor, image_channels, image_size, f"AutoencoderKL {name}", side)


def taef2(folder: str, image_channels: int, image_size: int, side: int = 0) -> Vae:
    """TAEF2 from the weights in `folder`; empty means the folder `weights` of $HARNESS_DATA."""
    from backbones.tiny_vae import load_taef2

    _rgb(image_channels)
    if not folder and "HARNESS_DATA" not in os.environ:
        raise HarnessError(
            "lmd.vae=taef2: names no folder and HARNESS_DATA is not set",
            "the folder of the TAEF2 weights",
            "lmd.vae=taef2:FOLDER, or HARNESS_DATA=FOLDER where FOLDER/weights holds them",
        )
    place = Path(folder) if folder else Path(os.environ["HARNESS_DATA"]) / "weights"
    return Vae(load_taef2(place), 32, 8, image_channels, image_size, "TAEF2 (madebyollin/taesd)", side)


def _rgb(image_channels: int) -> None:
    if image_channels not in (1, 3):
        raise HarnessError(f"a borrowed VAE wants colour images, not {image_channels} channels", "1 or 3 channels")


@dataclass(frozen=True)
class VaeConfig:
    """How the small VAE is trained. Ours throughout: LMD's paper borrows a trained one."""

    batch_size: int = 128
    lr_peak: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    kl_weight: float = 1e-3  # on the mean divergence per latent number, beside the mean absolute error per pixel
    clip_norm: float = 1.0


class VaeObjective(Objective):
    """Trains a small VAE: absolute error plus a small Kullback-Leibler term that keeps latents near unit scale."""

    def __init__(self, vae: Vae, config: VaeConfig = VaeConfig()) -> None:
        super().__init__()
        self.vae, self.config = vae, config

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        images = batch.images
        posterior = self.vae.code(images).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = rng.normal("posterior", mean.shape).to(mean.device)
        decoded = self.vae.decode(mean + (0.5 * logvar).exp() * noise)
        error = F.l1_loss(decoded, images)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        terms = {"l1": error.detach(), "kl": divergence.detach()}
        return Loss(error + self.config.kl_weight * divergence, terms)

    def optim(self, batch_size: int) -> Optim:
        c = self.config
        return Optim(c.lr_peak, betas=c.betas, weight_decay=c.weight_decay, clip_norm=c.clip_norm)

    def param_groups(self) -> list[dict[str, Any]]:
        """Asking for the groups says that the VAE is what is trained now."""
        self.vae.requires_grad_(True)
        return super().param_groups()
