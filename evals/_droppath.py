"""Drop path for any network: residual blocks that a training skips at random, per image (Huang et al. 2016).

A block that keeps its input's shape is taken for `x + f(x)`: skipped it gives x, kept x + f(x) / (1 - rate), so that
its mean is what it gives plainly. In a U-Net that holds for the blocks whose number of channels stays the same, and
for attention; where they change, as all along a decoder, nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from evals._depths import keeps_shape
from harness.rng import Rng


@contextmanager
def dropping(residual: Sequence[nn.Module], rate: float, rng: Rng) -> Iterator[None]:
    """Inside, each of `residual` is skipped with a probability that rises linearly from 0 to `rate` along the row."""
    last = max(1, len(residual) - 1)
    shares = [rate * number / last for number in range(len(residual))]
    hooks = [
        block.register_forward_hook(_hook(share, rng.at("block", number)))
        for number, (block, share) in enumerate(zip(residual, shares, strict=True))
        if share > 0
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(rate: float, rng: Rng):
    calls = 0

    def drop(_: nn.Module, given: tuple, out: object) -> object:
        nonlocal calls
        if not keeps_shape(given, out):
            return out
        x: Tensor = given[0]
        kept = (rng.uniform(calls, (len(x),)) >= rate).to(out) / (1 - rate)
        calls += 1
        return x + kept.view(-1, *(1,) * (x.ndim - 1)) * (out - x)

    return drop
