"""What the comparisons with the references share: their filling rule, and an optimizer step as the loop makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from harness.method import Method
from harness.train.optim import build_optimizer, rate, set_rate


def wave(scale: float, by: float, phase: float, shape: Iterable[int], of=np.sin) -> Tensor:
    """`scale` * of(`by` * j + `phase`) over the flat places j of `shape`, float64."""
    shape = tuple(shape)
    return torch.from_numpy((scale * of(by * np.arange(int(np.prod(shape))) + phase)).reshape(shape))


def by_rule(shapes: dict[str, tuple[int, ...]], norms: Callable[[str], bool] = lambda name: False) -> dict[str, Tensor]:
    """The golden files' tensors: 0.1 sin(0.37 j + i) for the i-th of the sorted names, and 1 more where `norms`."""
    return {
        name: wave(0.1, 0.37, i, shapes[name]) + (1.0 if norms(name) else 0.0) for i, name in enumerate(sorted(shapes))
    }


def descend(method: Method, losses: list[Callable[[], Tensor]], batch: int, moments: list[float]) -> Iterable[float]:
    """One optimizer step for each of `losses`, at the rates of the `moments` (progress); gives each after its step."""
    optim = method.optim(batch)
    optimizer = build_optimizer(method, optim)
    for loss, progress in zip(losses, moments, strict=True):
        set_rate(optimizer, rate(optim, progress))
        total = loss()
        total.backward()
        if optim.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(method.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield total.item()
