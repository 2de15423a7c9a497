"""Labels in training: some are taken away, so that one network learns to draw with and without.

Shapes: B batch. Reference: Ho & Salimans 2022, "Classifier-free diffusion guidance", algorithm 1; card dit, section 2.
"""

from __future__ import annotations

from torch import Tensor

from harness.errors import HarnessError
from harness.rng import Rng


def dropped(labels: Tensor | None, share: float, none: int, rng: Rng) -> Tensor:
    """`labels` [B] with about a `share` of them replaced by `none`, the label table's last row.

    Raises HarnessError for a batch without labels: training on nothing but `none` would pass in silence.
    """
    if labels is None:
        raise HarnessError("a batch without labels for an objective that sees labels", "Batch.labels, int64 [B]")
    return labels.masked_fill(rng.uniform("label drop", labels.shape).to(labels.device) < share, none)
