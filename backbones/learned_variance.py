"""What a network that also predicts its variance is trained with: the variational term of improved DDPM.

Shapes: B batch, [B, ...] images or latents; k [B] noise levels. The variance channel v says where between two bounds
the log variance of the reverse step lies: -1 is the true posterior's, 1 is beta's. References: Nichol & Dhariwal 2021,
equations 14 to 16; Ho et al. 2020, equation 13 (the last step's likelihood); card dit, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, pi

import numpy as np
import torch
from torch import Tensor, nn

from backbones.diffusion import Diffusion

BIN = 1 / 255  # half the distance of two grey levels in [-1, 1]
INSIDE = 0.999  # beyond it the outermost bins reach to infinity
LEAST = 1e-12  # probability, before its logarithm


def implied(diffusion: Diffusion, noised: Tensor, eps: Tensor, k: Tensor) -> Tensor:
    """The clean images [B, ...] that noise `eps` in `noised` at levels `k` [B] implies, not clipped."""
    return (noised - _wide(diffusion.spread[k], noised) * eps) / _wide(diffusion.signal[k], noised)


class LearnedVariance(nn.Module):
    """The reverse step's bounds along one schedule `alpha_bar` [T] (float64): tables that travel with the device."""

    low: Tensor  # [T] log variance of the true posterior
    high: Tensor  # [T] log beta
    of_x0: Tensor  # [T] weight of the clean image in the posterior's mean
    of_x: Tensor  # [T] weight of the noised one

    def __init__(self, alpha_bar: np.ndarray) -> None:
        super().__init__()
        before = np.append(1.0, alpha_bar[:-1])
        beta = 1 - alpha_bar / before
        posterior = beta * (1 - before) / (1 - alpha_bar)
        posterior[0] = posterior[1] if len(posterior) > 1 else beta[0]  # the first is 0 and has no logarithm
        tables = {
            "low": np.log(posterior),
            "high": np.log(beta),
            "of_x0": beta * before**0.5 / (1 - alpha_bar),
            "of_x": (1 - before) * (1 - beta) ** 0.5 / (1 - alpha_bar),
        }
        for name, values in tables.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.get_default_dtype()), persistent=False)

    def hybrid(
        self, diffusion: Diffusion, x: Tensor, noised: Tensor, found: Tensor, eps: Tensor, k: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The squared error of the noise and the variational term, each [B], of a network's `found` [B, 2 C, ...]."""
        eps_hat, v = found.to(eps.dtype).chunk(2, dim=1)
        # The variance learns from the variational term alone: the mean in it is the network's, without a gradient.
        x0_hat = implied(diffusion, noised, eps_hat.detach(), k)
        return (eps_hat - eps).square().flatten(1).mean(dim=1), self.loss(x, x0_hat, noised, v, k)

    def posterior_mean(self, x0: Tensor, x: Tensor, k: Tensor) -> Tensor:
        """The mean of the step before `x` at levels `k`, when the clean image is `x0`; all [B, ...]."""
        return _wide(self.of_x0[k], x) * x0 + _wide(self.of_x[k], x) * x

    def log_variance(self, v: Tensor, k: Tensor) -> Tensor:
        """The predicted log variance [B, ...] of the variance channel `v` [B, ...] at levels `k`."""
        return torch.lerp(_wide(self.low[k], v), _wide(self.high[k], v), (v + 1) / 2)

    def loss(self, x0: Tensor, x0_hat: Tensor, x: Tensor, v: Tensor, k: Tensor) -> Tensor:
        """The variational term [B] in bits a number, by which the variance alone learns: pass `x0_hat` detached."""
        true, mean = self.posterior_mean(x0, x, k), self.posterior_mean(x0_hat, x, k)
        spread, log_variance = _wide(self.low[k], x), self.log_variance(v, k)
        divergence = 0.5 * (
            log_variance - spread - 1 + (spread - log_variance).exp() + (true - mean).square() * (-log_variance).exp()
        )
        nats = divergence.flatten(1).mean(dim=1)
        # One image in a thousand is at level 0. A CPU is asked which; a GPU would stall, and a tensor that is only
        # traced has no numbers: there it is computed for all.
        ask = k.device.type == "cpu" and type(k) is Tensor
        last = (k == 0).nonzero().squeeze(1) if ask else torch.arange(len(k), device=k.device)
        if len(last):
            missed = -_log_likelihood(x0[last], mean[last], 0.5 * log_variance[last]).flatten(1).mean(dim=1)
            nats = nats.index_copy(0, last, torch.where(k[last] == 0, missed, nats[last]))
        return nats / log(2)


def _log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of the grey level nearest to `x` under a Gaussian; the outermost levels have a whole tail."""
    centred, per = x - mean, (-log_scale).exp()
    above, below = _normal_cdf(per * (centred + BIN)), _normal_cdf(per * (centred - BIN))
    inside = (above - below).clamp_min(LEAST).log()
    darkest, brightest = above.clamp_min(LEAST).log(), (1 - below).clamp_min(LEAST).log()
    return torch.where(x < -INSIDE, darkest, torch.where(x > INSIDE, brightest, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    """The references' approximation by a tanh, not the error function: their numbers are reproduced."""
    return 0.5 * (1 + torch.tanh((2 / pi) ** 0.5 * (x + 0.044715 * x**3)))


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def ancestral(
    diffusion: Diffusion,
    denoise: Callable[[Tensor, int], Tensor],
    x: Tensor,
    levels: Sequence[int],
    noise: Callable[[int], Tensor],
    clip: bool,
) -> Tensor:
    """The clean image from noise `x` [B, C, ...] down `levels`, every step drawn with the predicted variance.

    `denoise(x, k)` is eps and the variance channel, [B, 2 C, ...]; `noise(i)` the fresh noise of step i, of which the
    last has none. The reverse steps are those of the schedule that has these levels only.
    """
    rising = sorted(levels)
    reverse = LearnedVariance(diffusion.alpha_bar[rising]).to(x.device)
    for i, level in enumerate(levels):
        place = torch.full((len(x),), rising.index(level), device=x.device)
        eps, v = denoise(x, level).chunk(2, dim=1)
        mean = reverse.posterior_mean(diffusion.clean(x, eps, level, clip), x, place)
        x = mean if level == rising[0] else mean + (0.5 * reverse.log_variance(v, place)).exp() * noise(i)
    return x
