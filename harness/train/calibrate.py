"""Which precision to train in, measured on the objective itself where time is what is being spent.

A count budget must be reproducible, so there the choice follows from the device alone and not from a stopwatch.
"""

from __future__ import annotations

import time

import torch

from harness.method import Batch, Objective
from harness.rng import Rng
from harness.train.flops import any_seed

ROUNDS = 3  # interleaved, the fastest of each counts: a neighbour's load hits one round, not all


def by_device(device: torch.device) -> str:
    """The precision for reproducible runs: bf16 where the GPU has it, fp32 elsewhere."""
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def fastest(objective: Objective, batch: Batch, rng: Rng, device: torch.device) -> tuple[str, dict[str, float]]:
    """The faster of fp32 and bf16 for a training step, and the seconds a step of each.

    Leaves the objective as it was: gradients cleared, buffers restored.
    """
    kept = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    seconds = {"fp32": float("inf"), "bf16": float("inf")}
    for _ in range(ROUNDS):
        for name in seconds:
            begin = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
                total = objective(batch, 0.5, any_seed(rng)).total
            total.float().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    objective.zero_grad(set_to_none=True)
    for name, buffer in objective.named_buffers():
        buffer.copy_(kept[name])
    return min(seconds, key=seconds.__getitem__), seconds
