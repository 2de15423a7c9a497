"""The moving average of the weights, by one rule for every method of a study.

Half-life in images, min(500k, 5 % of the images seen): a fixed decay of 0.9999 would leave most of the initial weights
in any run under 50k steps (card dit, section 7; the rule is EDM's ramp-up). Or, with a cap, DDAE's: the decay of step n
is min(cap, 1 - n^(-2/3)) (card ddae, section 4).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

HALF_LIFE_IMG = 500_000
RAMP = 0.05


class Ema:
    """Averaged copy of a module's trained parameters; buffers and frozen parts are the module's own."""

    def __init__(self, module: nn.Module, cap: float | None = None) -> None:
        # Listed once: walking the modules at every step would cost more than the averaging.
        self._live = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.cap = cap
        self.averaged = {n: p.detach().clone() for n, p in self._live.items()}

    @torch.no_grad()
    def update(self, img_seen: float, batch: int, step: int) -> None:
        """Follow step `step`, from 1; `img_seen` images up to now, the last `batch` of them in this step."""
        if self.cap is None:
            decay = 0.5 ** (batch / min(HALF_LIFE_IMG, RAMP * img_seen))
        else:
            decay = min(self.cap, 1 - step ** (-2 / 3))
        torch._foreach_lerp_(list(self.averaged.values()), list(self._live.values()), 1.0 - decay)

    def settled(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state with the averaged parameters in their places, tied ones in each: what is evaluated."""
        average = {p: self.averaged[n] for n, p in module.named_parameters() if n in self.averaged}
        return {n: average.get(t, t.detach()) for n, t in module.state_dict(keep_vars=True).items()}
