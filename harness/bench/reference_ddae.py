"""The reference DDAE's own training step: its U-Net, DDPM objective, Adam, clipping and moving average.

Its `train` wants a GPU and a process group, so the order of a step is driven from here (card ddae, section 4);
everything that takes time in it is the reference's, and ema-pytorch's, which has to be installed for it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.bench.reference import Feed, Loop, Pictures
from harness.errors import HarnessError

GROUPS = 32  # in its normalisations, whatever the width
AVERAGE = 0.9999  # of its DDPM settings
RATE, CLIP = 1e-4, 1.0


class Reference(Loop):
    """Float32 on a CPU, its mixed precision on a GPU, with which its times were reported."""

    def __init__(self, images: np.ndarray, config: Any, batch_size: int, device: torch.device) -> None:
        from ema_pytorch import EMA  # type: ignore[import-not-found]
        from model.models import get_models_class  # type: ignore[import-not-found]
        from torchvision import transforms

        settings = unet_settings(config)
        self.device, self.batch_size = device, batch_size
        self.mixed = device.type == "cuda"
        self.precision = "fp16" if self.mixed else "fp32"
        objective, network = get_models_class("DDPM", "UNet")
        _set_groups(settings.groups)
        self.model = objective(
            nn_model=network(**_network(settings, images.shape[1:])), betas=(1e-4, 0.02), n_T=1000, device=device
        ).to(device)
        self.average = EMA(self.model, beta=AVERAGE, update_after_step=0, update_every=1).to(device)
        self.model.train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.mixed)
        flip = [transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.data = Pictures(images, transforms.Compose(flip))

    def go(self, feed: Feed) -> None:
        smooth = None
        for images, _ in feed:
            self.optimizer.zero_grad()
            loss = self.model(images.to(self.device), use_amp=self.mixed)
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=CLIP)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.average.update()
            smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()  # for its progress bar


def unet_settings(config: Any) -> Any:
    """The U-Net's settings within a method's config: the one part of it that has widths by level (`mults`)."""
    found = [part for part in (config, *vars(config).values()) if hasattr(part, "mults")]
    if len(found) != 1:
        raise HarnessError(f"{len(found)} settings of a U-Net in {type(config).__name__}", "one")
    return found[0]


def _network(settings: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """The arguments of its `UNet` for our settings of the same network."""
    return {
        "image_shape": list(shape),
        "n_channels": settings.width,
        "ch_mults": list(settings.mults),
        "is_attn": [level in settings.attention for level in range(len(settings.mults))],
        "attn_channels_per_head": settings.head or None,
        "dropout": settings.dropout,
        "n_blocks": settings.blocks,
        "use_res_for_updown": settings.resample == "residual",
    }


def _set_groups(groups: int) -> None:
    """Networks narrower than its own do not divide into its groups."""
    if groups == GROUPS:
        return

    def norm(channels: int) -> nn.GroupNorm:
        return nn.GroupNorm(groups, channels)

    for module in ("model.unet", "model.block"):
        sys.modules[module].GroupNorm32 = norm  # type: ignore[attr-defined]
