"""How many GPUs there are, asked without torch where the answer is plain: loading it takes longer than a plan may."""

from __future__ import annotations

import os
import sys

# How names in /dev start that a driver torch can use puts there: NVIDIA's, Tegra's, Windows' below Linux, AMD's.
DRIVERS = ("nvidia", "nvhost", "nvgpu", "nvmap", "dxg", "kfd")


def count() -> int:
    """GPUs that torch sees. A Linux without a driver has none; everywhere else torch is asked."""
    if "torch" not in sys.modules and sys.platform == "linux" and not _driver():
        return 0
    import torch

    return torch.cuda.device_count()


def _driver() -> bool:
    return any(name.startswith(DRIVERS) for name in os.listdir("/dev"))
