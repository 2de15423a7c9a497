"""The reference DiT's own training step, in pixels: its network, diffusion, AdamW, average and picture pipeline.

Its `main` wants a GPU, a process group and a VAE, so the order of a step is driven from here (card dit, section 13);
everything that takes time in it is the reference's. Card dit, section 4, has the settings.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch

from harness.bench.reference import Feed, Loop, Pictures


class Reference(Loop):
    """One class for all images, for its label table needs one; in train mode, as its labels are dropped there."""

    def __init__(self, images: np.ndarray, config: Any, batch_size: int, device: torch.device) -> None:
        import models  # type: ignore[import-not-found]
        import train  # type: ignore[import-not-found]
        from diffusion import create_diffusion  # type: ignore[import-not-found]

        side = images.shape[-1]
        self.device, self.batch_size, self.precision = device, batch_size, "fp32"
        self.model = models.DiT(
            input_size=side,
            patch_size=config.patch,
            in_channels=images.shape[1],
            hidden_size=config.trunk.width,
            depth=config.trunk.depth,
            num_heads=config.trunk.heads,
            num_classes=1,
            learn_sigma=config.learn_sigma,
        ).to(device)
        self.average = deepcopy(self.model).eval()
        train.requires_grad(self.average, False)
        self.update_average = train.update_ema
        self.update_average(self.average, self.model, decay=0)
        self.model.train()
        self.diffusion = create_diffusion(timestep_respacing="")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0)
        self.data = Pictures(images, _transform(partial(train.center_crop_arr, image_size=side)))

    def parameters(self) -> int:
        table = sum(p.numel() for p in self.model.y_embedder.parameters())
        return super().parameters() - table

    def forward_of(self) -> tuple[Any, str]:
        return self.diffusion, "training_losses"

    def go(self, feed: Feed) -> None:
        total = 0.0
        for images, classes in feed:
            seen, given = images.to(self.device), {"y": classes.to(self.device)}
            levels = torch.randint(self.diffusion.num_timesteps, (len(seen),), device=self.device)
            loss = self.diffusion.training_losses(self.model, seen, levels, given)["loss"].mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.update_average(self.average, self.model)
            total += loss.item()  # for its log, at every step


def _transform(crop: Any) -> Any:
    """Its centre crop, mirror, tensor, [-1, 1]."""
    from torchvision import transforms

    halves = [0.5] * 3
    scale = transforms.Normalize(halves, halves, inplace=True)
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), scale])
