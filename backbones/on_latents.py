"""What methods on the latents of a frozen VAE share: getting one, training it first, caching what it makes.

The VAE is trained here within the method's budget, borrowed and declared, or absent; see backbones/vae.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backbones.vae import Vae, VaeObjective, pretrained_kl, small_kl, taef2
from harness.method import DataSpec, Method, Preparation


class OnLatents(Method):
    """A method whose images are seen through `self.vae`, or as they are where that is None.

    Its config has `vae` (a name, see `build_vae`), `vae_side`, `vae_width`, `vae_share`, `vae_training` and `views`.
    """

    vae: Vae | None

    def preparation(self) -> Preparation | None:
        if self.vae is None or self.config.vae != "train":
            return None
        training = self.config.vae_training
        return Preparation(VaeObjective(self.vae, training), self.config.vae_share, training.batch_size)

    def borrowed(self) -> list[dict[str, Any]]:
        """What this config borrows, as the run's record wants it; a card cannot know."""
        if self.vae is None or self.vae.borrowed is None:
            return []
        return [{"what": self.vae.borrowed, "parameters": self.vae.parameters_borrowed, "cost": None}]

    def train(self, mode: bool = True):
        super().train(mode)
        if self.vae is not None:
            self.vae.eval()
        return self

    def param_groups(self) -> list[dict[str, Any]]:
        """The method's own network alone: from here on the VAE is frozen."""
        if self.vae is not None:
            self.vae.requires_grad_(False)
        return super().param_groups()

    @torch.no_grad()
    def cached(self, images: Tensor) -> Tensor | None:
        return None if self.vae is None or not self.config.views else self.vae.encode(images)


def build_vae(config: Any, data: DataSpec) -> Vae | None:
    """The VAE that `config.vae` names: "none", "train" (ours), "taef2:FOLDER", or a diffusers hub name or folder."""
    if config.vae == "none":
        return None
    if config.vae == "train":
        return small_kl(data.channels, data.size, config.vae_width).eval()
    if config.vae.startswith("taef2:"):
        return taef2(config.vae.removeprefix("taef2:"), data.channels, data.size, config.vae_side).eval()
    return pretrained_kl(config.vae, data.channels, data.size, config.vae_side).eval()
