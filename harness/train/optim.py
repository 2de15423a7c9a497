"""Optimizers and the learning-rate curve over the budget."""

from __future__ import annotations

import math

import torch

from harness.errors import HarnessError
from harness.method import Objective, Optim


def build_optimizer(objective: Objective, optim: Optim) -> torch.optim.Optimizer:
    """The optimizer an objective asks for; rates are set at each step by `set_rate`."""
    groups = objective.param_groups()
    shared = {"lr": optim.lr_peak, "betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, **shared, fused=True)
    if optim.name == "adan":
        from timm.optim import Adan

        # caution=False, no_prox=False: Adan as its paper has it (card lmd, section 5)
        return Adan(groups, **shared, no_prox=False, foreach=True)
    raise HarnessError(f"unknown optimizer {optim.name!r}", "adamw or adan")


def rate(optim: Optim, progress: float) -> float:
    """Learning rate at `progress` in [0, 1]: linear warm-up from 0, then a half cosine to 0, or constant.

    The curve is over the share of the budget, so that it ends on the budget in whatever unit that is.
    """
    if progress < optim.warmup:
        return optim.lr_peak * progress / optim.warmup
    if optim.schedule == "constant":
        return optim.lr_peak
    if optim.schedule == "cosine":
        done = (progress - optim.warmup) / max(1e-12, 1 - optim.warmup)
        return optim.lr_peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    raise HarnessError(f"unknown schedule {optim.schedule!r}", "cosine or constant")


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group, times the group's own `lr_scale` (layer decay)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
