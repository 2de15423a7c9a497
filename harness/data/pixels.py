"""Pixels as methods see them (float in [-1, 1]) and as they are stored (uint8), one pair of functions for all."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 of any shape to float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Floats to uint8, clamped and rounded to the nearest grey level (truncating shifts FID: evaluation card, 10)."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
