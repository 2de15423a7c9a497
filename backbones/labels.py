"""Labels in training: some are taken away, so that one network learns to draw with and without; and guidance by them.

Shapes: B batch, C channels. Reference: Ho & Salimans 2022, "Classifier-free diffusion guidance", algorithm 1; card dit,
section 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.rng import Rng


def dropped(labels: Tensor | None, share: float, none: int, rng: Rng) -> Tensor:
    """`labels` [B] with about a `share` of them replaced by `none`, the label table's last row.

    Raises HarnessError for a batch without labels: training on nothing but `none` would pass in silence.
    """
    if labels is None:
        raise HarnessError("a batch without labels for an objective that sees labels", "Batch.labels, int64 [B]")
    return labels.masked_fill(rng.uniform("label drop", labels.shape).to(labels.device) < share, none)


def guided(
    network: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    level: Tensor,
    labels: Tensor,
    none: int,
    scale: float,
) -> Tensor:
    """`network(x, level, labels)` moved `scale` times the way from no label to `labels` [B], in one pass for both.

    That is so in the first C channels, those of `x`: a predicted variance stays the label's own.
    """
    both = torch.cat([labels, torch.full_like(labels, none)])
    led, free = network(torch.cat([x, x]), torch.cat([level, level]), both).chunk(2)
    c = x.shape[1]
    return torch.cat([torch.lerp(free[:, :c], led[:, :c], scale), led[:, c:]], dim=1)


def start_fresh(table: Tensor) -> None:
    """Set a label table [K + 1, D] that joins a trained network, the last row that of no label.

    No label is zero, so that without one the network is what it was. Labels have the scale of the width: from DiT's
    0.02, made for long trainings, they take some hundred steps more to count.
    """
    nn.init.normal_(table, std=table.shape[1] ** -0.5)
    nn.init.zeros_(table[-1])
