"""FLOPs measured with torch's counter, 2 per multiply-accumulate; never typed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.method import Batch, Method, Objective, Tap
from harness.rng import Rng

# The cost of a step may move with progress (LMD's mask schedule), so it is measured along the budget.
POINTS = 8


def count(work: Callable[[], object]) -> float:
    """FLOPs of calling `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def train_flop_per_image(objective: Objective, batch: Batch, rng: Rng) -> float:
    """Forward and backward FLOPs of one training image, mean over the budget.

    Leaves the objective as it was: gradients cleared, buffers restored.
    """
    first = batch.latents if batch.images is None else batch.images
    kept = {name: buffer.clone() for name, buffer in objective.named_buffers()}

    def step(progress: float) -> None:
        objective(batch, progress, rng.at("flops")).total.backward()

    ends = [count(lambda: step(0.5 / POINTS)), count(lambda: step(1 - 0.5 / POINTS))]
    between = [] if ends[0] == ends[1] else [count(lambda p=(i + 0.5) / POINTS: step(p)) for i in range(1, POINTS - 1)]
    mean = sum(ends + between) / len(ends + between)
    objective.zero_grad(set_to_none=True)
    for name, buffer in objective.named_buffers():
        buffer.copy_(kept[name])
    return mean / len(first)


@torch.no_grad()
def feature_flop_per_image(method: Method, tap: Tap, rng: Rng, batch: int = 4) -> float:
    """Forward FLOPs of one image's features at `tap`."""
    parameter = next(method.parameters())
    spec = method.data
    images = torch.zeros(batch, spec.channels, spec.size, spec.size, device=parameter.device)
    return count(lambda: method.features(images, [tap], rng)) / batch
