"""EDM: noise levels as standard deviations, a preconditioned denoiser, its loss, and Heun's sampler.

Shapes: B batch; images are [B, C, H, W] in [-1, 1]. sigma [B] is the noise's standard deviation, F the network, D the
denoiser. References: Karras et al. 2022, table 1 and algorithm 1; card ddae, sections 3 and 10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from harness.errors import HarnessError

# F: scaled images [B, C, H, W] and what it is told of the noise [B] to [B, C, H, W].
Network = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Edm:
    """The paper's constants for images in [-1, 1], and what follows from them."""

    sigma_data: float = 0.5  # of the images
    p_mean: float = -1.2  # of ln(sigma) in training
    p_std: float = 1.2
    sigma_min: float = 0.002  # of the grid
    sigma_max: float = 80.0
    rho: float = 7.0  # how closely the grid's low levels lie
    levels: int = 18  # of the grid that features are read on

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max or min(self.sigma_data, self.p_std, self.rho) <= 0:
            raise ValueError("sigma_min lies between 0 and sigma_max; sigma_data, p_std and rho are above 0")
        if self.levels < 2:
            raise ValueError("levels is at least 2")

    # -- training ------------------------------------------------------------------------------------------------------

    def drawn(self, normal: Tensor) -> Tensor:
        """sigma [B] of standard normals [B], as training sees it."""
        return (self.p_mean + self.p_std * normal).exp()

    def told(self, sigma: Tensor) -> Tensor:
        """What the network is told of sigma [B]."""
        return sigma.log() / 4

    def scaled(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Noised images as the network sees them: of unit variance."""
        return x / _wide(sigma.square() + self.sigma_data**2).sqrt()

    def denoised(self, network: Network, x: Tensor, sigma: Tensor) -> Tensor:
        """D, the clean images that noised `x` imply. Only the network runs in less than `x`'s precision."""
        found = network(self.scaled(x, sigma), self.told(sigma)).to(x.dtype)
        s, total = _wide(sigma), _wide(sigma.square() + self.sigma_data**2)
        return self.sigma_data**2 / total * x + s * self.sigma_data / total.sqrt() * found

    def loss(self, network: Network, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Squared error of D for clean `x` with standard normal `noise`; weighted so that F's error has weight 1."""
        s = _wide(sigma)
        weight = (s.square() + self.sigma_data**2) / (s * self.sigma_data).square()
        return (weight * (self.denoised(network, x + s * noise, sigma) - x).square()).mean()

    # -- the grid and the sampler --------------------------------------------------------------------------------------

    def grid(self, steps: int) -> list[float]:
        """`steps` levels from sigma_max down to sigma_min, then 0."""
        if steps < 1:
            raise HarnessError(f"{steps} sampling steps", "a number from 1")
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        shares = [i / (steps - 1) for i in range(steps)] if steps > 1 else [0.0]
        return [(high + share * (low - high)) ** self.rho for share in shares] + [0.0]

    def level(self, k: int) -> float:
        """sigma of feature level `k`, counted from the least noise, 1, to `levels`.

        0 is no level: ln(0) is told to the network as minus infinity.
        """
        if not 1 <= k <= self.levels:
            raise HarnessError(f"noise level {k}", f"one from 1 to {self.levels}")
        return self.grid(self.levels)[self.levels - k]

    def heun(self, network: Network, start: Tensor, steps: int, clip: bool = True) -> Tensor:
        """Images of standard normal `start`, in 2 `steps` - 1 evaluations without fresh noise; float64 throughout.

        `clip` holds D in [-1, 1], which EDM itself does not.
        """
        levels = self.grid(steps)

        def slope(x: Tensor, s: float) -> Tensor:
            sigma = torch.full((len(x),), s, device=x.device)
            clean = self.denoised(network, x.to(start.dtype), sigma.to(start.dtype)).double()
            return (x - (clean.clamp(-1, 1) if clip else clean)) / s

        x = start.double() * levels[0]
        for s, after in pairwise(levels):
            first = slope(x, s)
            euler = x + (after - s) * first
            x = euler if after == 0 else x + (after - s) * (first + slope(euler, after)) / 2
        return x.to(start.dtype)


def _wide(sigma: Tensor) -> Tensor:
    return sigma.view(-1, 1, 1, 1)
