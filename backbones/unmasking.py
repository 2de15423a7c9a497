"""Drawing with a masked autoencoder: reveal a picture patch by patch, in random order, from nothing to whole.

Ours: the papers of MAE and LMD have no sampler (cards mae, section 9 B, and lmd, section 8). A masked autoencoder
predicts a mean, and with standardised targets not even that. What drawing needs besides is therefore estimated beside
the training, from passes without gradient, so that the objective and the trained weights stay exactly the paper's:

- the mean and deviation of every number of every place, over training pictures;
- for each of `LEVELS` mask ratios, the second moments of (decoder token, true patch). They give the least-squares
  readout of a patch from its decoder token, and the covariance of what the readout leaves open.

All of it is buffers: running means, updated in order, saved with the weights. A patch is then drawn as readout plus
Gaussian noise of that covariance: an order-agnostic autoregressive Gaussian model on top of the trained network.

Shapes: B pictures, N tokens, P numbers in a patch, E decoder width, M dropped tokens.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from backbones.masked_autoencoder import MaskedAutoencoder, dropped_places
from backbones.tokens import random_drop, take
from harness.errors import HarnessError
from harness.rng import Rng

LEVELS = 8  # mask ratios 1/8, 2/8 ... 1 for which moments are kept
RECENT = 4.0  # the running means weigh about the last 1/RECENT of the training: the network changes under them
SHARED = 0.1  # weight of all levels together in each level's moments, for a level that has seen little
RIDGE = 1e-4  # of the mean feature power
FLOOR = 1e-3  # of the variance, in the square of the data's unit


class Unmasking(nn.Module):
    """The running statistics and the sampler made of them; holds no trained parameter."""

    def __init__(self, core: MaskedAutoencoder) -> None:
        super().__init__()
        width, numbers = core.decoder_pred.in_features, core.decoder_pred.out_features
        size = width + 1 + numbers
        self.register_buffer("mean", torch.zeros(core.tokens, numbers))
        self.register_buffer("variance", torch.ones(core.tokens, numbers))
        self.register_buffer("moments", torch.eye(size).repeat(LEVELS, 1, 1))
        self.register_buffer("seen", torch.zeros(LEVELS))  # updates of each level

    # -- estimate, beside the training --------------------------------------------------------------------------

    @torch.no_grad()
    def update(self, core: MaskedAutoencoder, patches: Tensor, rng: Rng) -> None:
        """Take in a few training pictures' patches [B, N, P] at one mask ratio, drawn from `rng`."""
        n = core.tokens
        level = rng.number("level") % LEVELS  # known without asking the device
        dropped = math.ceil(n * (level + 1) / LEVELS)
        drop = random_drop(rng.uniform("mask", (len(patches), n)).to(patches.device), n - dropped)
        decoded = core.decode(core.encode(patches, drop), drop)  # [B, N, E]
        with torch.autocast(patches.device.type, enabled=False):
            self._place_statistics(patches)
            places = dropped_places(drop)
            z = take((patches - self.mean) / self.deviation, places).flatten(0, 1)  # [B M, P]
            x = take(decoded.to(z.dtype), places).flatten(0, 1)  # [B M, E]
            joint = torch.cat([x, torch.ones_like(x[:, :1]), z], dim=1)
            self._lean(self.moments[level], joint.T @ joint / len(joint), self.seen[level])
            self.seen[level] += 1

    @property
    def deviation(self) -> Tensor:
        """[N, P]; with a floor, so that a number that hardly ever moves is no outlier when it does."""
        return (self.variance + FLOOR).sqrt()

    def _place_statistics(self, patches: Tensor) -> None:
        updates = self.seen.sum()
        self._lean(self.mean, patches.mean(dim=0), updates)
        self._lean(self.variance, (patches - self.mean).square().mean(dim=0), updates)

    @staticmethod
    def _lean(running: Tensor, value: Tensor, updates: Tensor) -> None:
        """Move `running` towards `value`: a running mean whose weights grow with time as updates^(RECENT - 1)."""
        running += (value - running) * (RECENT / (RECENT + updates))

    # -- draw ---------------------------------------------------------------------------------------------------

    def readout(self, level: int) -> tuple[Tensor, Tensor]:
        """For one level: weights [E + 1, P] of the readout, and a root [P, P] of the residual covariance.

        A level that never had its turn, as may happen in a short training, takes what the others saw.
        """
        seen = self.seen.double()
        together = torch.tensordot(seen / seen.sum(), self.moments.double(), dims=1)
        moments = torch.lerp(self.moments[level].double(), together, SHARED if seen[level] else 1.0)
        split = len(moments) - self.mean.shape[1]
        xx, xz, zz = moments[:split, :split], moments[:split, split:], moments[split:, split:]
        ridge = RIDGE * xx.diagonal().mean() * torch.eye(split, dtype=xx.dtype, device=xx.device)
        weights = torch.linalg.solve(xx + ridge, xz)
        residual = zz - xz.T @ weights - weights.T @ xz + weights.T @ xx @ weights
        values, vectors = torch.linalg.eigh((residual + residual.T) / 2)
        root = vectors * values.clamp(min=0).sqrt()
        return weights.to(self.mean.dtype), root.T.to(self.mean.dtype)

    @torch.no_grad()
    def draw(
        self,
        core: MaskedAutoencoder,
        n: int,
        rounds: int,
        rng: Rng,
        temperature: float = 1.0,
        bounds: tuple[float, float] | None = None,
    ) -> Tensor:
        """`n` pictures as patches [n, N, P], revealed in `rounds` rounds on a cosine schedule."""
        if rounds < 1:
            raise HarnessError(f"{rounds} rounds of drawing", "at least 1")
        if not self.seen.any():
            raise HarnessError(
                "the sampler's statistics were never updated", "a training of some dozen steps", "a larger --budget"
            )
        noise = rng.uniform("order", (n, core.tokens)).to(self.mean.device)
        order = noise.argsort(dim=1)
        patches = self.mean.expand(n, -1, -1).clone()
        readout = cache(self.readout)
        seen = 0
        for number, until in enumerate(reveal(core.tokens, rounds)):
            drop = random_drop(noise, seen)  # keeps the first `seen` of `order`
            decoded = core.decode(core.encode(patches, drop), drop)
            places = order[:, seen:until]
            weights, root = readout(level_of((core.tokens - seen) / core.tokens))
            grain = rng.normal(f"grain {number}", (n, until - seen, len(root))).to(weights)
            with torch.autocast(patches.device.type, enabled=False):  # the products are few, and errors accumulate
                x = take(decoded, places).to(weights.dtype)
                z = x @ weights[:-1] + weights[-1] + temperature * grain @ root
            drawn = z * self.deviation[places] + self.mean[places]
            drawn = drawn if bounds is None else drawn.clamp(*bounds)
            patches.scatter_(1, places[..., None].expand_as(drawn), drawn)
            seen = until
        return patches


def level_of(ratio: float) -> int:
    """The level whose mask ratio is nearest to `ratio` in (0, 1]."""
    return max(0, min(LEVELS - 1, round(ratio * LEVELS) - 1))


def reveal(tokens: int, rounds: int) -> list[int]:
    """How many tokens are seen after each round: the masked share falls as cos(pi/2 k/K), one token a round at least.

    More rounds than tokens are one token a round.
    """
    rounds, seen, after = min(rounds, tokens), 0, []
    for k in range(1, rounds + 1):
        masked = math.floor(tokens * math.cos(math.pi / 2 * k / rounds))
        seen = min(max(seen + 1, tokens - masked), tokens - (rounds - k))
        after.append(seen)
    return after
