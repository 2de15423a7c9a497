"""Gaussian diffusion in discrete time: schedules, noising, strided DDIM.

Shapes: B batch; images are [B, C, H, W] or anything with B first. k = 0..T-1 is the noise level, alpha_bar[k]
the share of the image's variance that is left. References: card umd, sections 2 and 6; Song et al. 2021
(DDIM), eq. 12.

The sampler is our own and not diffusers' DDIMScheduler: one step of the two is equal (tests/backbones), but
the scheduler's spacings never give the grid 999, 999 - d, ..., 0 with a last estimate at 0, and it keeps
alpha_bar in float32, where the cosine schedule's last value (2.4e-9, a product of a thousand factors) loses
three digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise, repeat
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn

from harness.errors import HarnessError, unknown

T = 1000


def cosine(steps: int = T, s: float = 0.008, beta_max: float = 0.999) -> np.ndarray:
    """alpha_bar [steps] of Nichol & Dhariwal 2021, float64, with each step's beta clipped at `beta_max`."""
    edges = np.cos((np.arange(steps + 1, dtype=np.float64) / steps + s) / (1 + s) * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - edges[1:] / edges[:-1], beta_max))


def linear(steps: int = T, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """alpha_bar [steps] of Ho et al. 2020, float64."""
    return np.cumprod(1 - np.linspace(first, last, steps, dtype=np.float64))


SCHEDULES = {"cosine": cosine, "linear": linear}


class Diffusion(nn.Module):
    """A noise schedule with what is done along it: noising, the estimate of the clean image, DDIM.

    A module only so that its two tables travel to the device; they are derived, hence not in the state dict.
    Their values are computed in float64 and kept in torch's default dtype.
    """

    signal: Tensor  # [T] sqrt(alpha_bar)
    spread: Tensor  # [T] sqrt(1 - alpha_bar)

    def __init__(self, schedule: str = "cosine", steps: int = T) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise unknown("noise schedule", schedule, SCHEDULES)
        # numpy on purpose: the sampler reads scalars, without a device sync
        self.alpha_bar = SCHEDULES[schedule](steps)
        dtype = torch.get_default_dtype()
        self.register_buffer("signal", torch.tensor(self.alpha_bar**0.5, dtype=dtype), persistent=False)
        self.register_buffer("spread", torch.tensor((1 - self.alpha_bar) ** 0.5, dtype=dtype), persistent=False)

    def noised(self, x: Tensor, k: Tensor, eps: Tensor) -> Tensor:
        """x_k of clean `x` [B, ...] with noise `eps` [B, ...] at levels `k` [B]."""
        shape = (-1,) + (1,) * (x.ndim - 1)
        return self.signal[k].view(shape) * x + self.spread[k].view(shape) * eps

    def clean(self, x: Tensor, eps: Tensor, k: int, clip: bool) -> Tensor:
        """The clean image that `x` at level `k` and the noise `eps` imply, clipped to [-1, 1] for pixels."""
        a = float(self.alpha_bar[k])
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        return x0.clamp(-1, 1) if clip else x0

    def sigma(self, k: int, after: int, eta: float) -> float:
        """Spread of the fresh noise of a step from level `k` to `after`; `eta` 1 is ancestral, 0 has none."""
        a, b = float(self.alpha_bar[k]), float(self.alpha_bar[after])
        return eta * ((1 - b) / (1 - a)) ** 0.5 * (1 - a / b) ** 0.5

    def ddim_step(
        self, x: Tensor, eps: Tensor, k: int, after: int, noise: Tensor | None, eta: float, clip: bool
    ) -> Tensor:
        """`x` taken from level `k` down to `after`; `noise` standard normal, read where `eta` > 0.

        With `clip`, eps is derived again from the clipped estimate, so that the two agree about `x`.
        """
        a, b, sigma = float(self.alpha_bar[k]), float(self.alpha_bar[after]), self.sigma(k, after, eta)
        x0 = self.clean(x, eps, k, clip)
        if clip:
            eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
        x = b**0.5 * x0 + (1 - b - sigma**2) ** 0.5 * eps
        return x if noise is None else x + sigma * noise

    def grid(self, steps: int) -> list[int]:
        """The levels that `steps` steps visit: 999, 999 - d, ... above 0, then 0; d = ceil(1000 / steps).

        The last is for the final estimate, so the network runs `steps` + 1 times (fewer where d does not
        divide).
        """
        if not 1 <= steps <= T:
            raise HarnessError(f"{steps} sampling steps", f"a number from 1 to {T}")
        return [*range(T - 1, 0, -ceil(T / steps)), 0]

    def respaced(self, steps: int) -> list[int]:
        """`steps` levels from 999 down to 0, as even as rounding allows: improved DDPM's (card dit, section 3).

        One step starts at 999; the reference's would look at level 0 alone.
        """
        if not 1 <= steps <= T:
            raise HarnessError(f"{steps} sampling steps", f"a number from 1 to {T}")
        if steps == 1:
            return [T - 1]
        # Added up, not multiplied: the sum's rounding decides some levels of odd counts (21, 23, 31 ...).
        places = accumulate(repeat((T - 1) / (steps - 1), steps - 1), initial=0.0)
        return [round(place) for place in places][::-1]

    def strided(self, steps: int) -> list[int]:
        """`steps` levels at one whole distance, down to 0: DDIM's in the references (50: 980, 960 ... 0)."""
        for stride in range(1, T):
            if len(levels := range(0, T, stride)) == steps:
                return [*levels][::-1]
        near = min((len(range(0, T, d)) for d in range(1, T)), key=lambda n: abs(n - steps))
        raise HarnessError(f"{steps} sampling steps at one distance", f"a number that fits, as {near}")

    def ddim(
        self,
        denoise: Callable[[Tensor, int], Tensor],
        x: Tensor,
        levels: Sequence[int],
        noise: Callable[[int], Tensor],
        eta: float = 1.0,
        clip: bool = True,
    ) -> Tensor:
        """The clean image from noise `x` down `levels`: `denoise(x, k)` is eps, `noise(i)` the fresh noise of step i.

        The last level gives the final estimate, and no step.
        """
        for i, (k, after) in enumerate(pairwise(levels)):
            x = self.ddim_step(x, denoise(x, k), k, after, noise(i) if eta else None, eta, clip)
        return self.clean(x, denoise(x, levels[-1]), levels[-1], clip)
