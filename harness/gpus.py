"""How many GPUs there are, asked without torch where the answer is plain: loading it takes longer than a plan may."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

# How names in /dev start that a driver torch can use puts there: NVIDIA's, Tegra's, Windows' below Linux, AMD's.
DRIVERS = ("nvidia", "nvhost", "nvgpu", "nvmap", "dxg", "kfd")
NVML = "libnvidia-ml.so.1"


def count() -> int:
    """GPUs that torch sees: none on a Linux without a driver, what NVML counts where torch would believe it."""
    if "torch" not in sys.modules and sys.platform == "linux":
        found = _by_nvml() if _driver() else 0
        if found is not None:
            return found
    import torch

    return torch.cuda.device_count()


def _driver() -> bool:
    return any(name.startswith(DRIVERS) for name in os.listdir("/dev"))


def _by_nvml() -> int | None:
    """As torch counts before it loads CUDA. None where only torch can tell.

    That is where it is built for something else, the driver is older than its CUDA, or CUDA_VISIBLE_DEVICES holds more
    than plain numbers.
    """
    needs, known = _cuda(), _nvml()
    if needs is None or known is None:
        return None
    number, offers = known
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = [str(i) for i in range(number)] if visible is None else visible.split(",")
    plain = len(set(named)) == len(named) and all(name.isdecimal() and int(name) < number for name in named)
    return len(named) if plain and offers >= needs else None


def _cuda() -> int | None:
    """The main version of the CUDA that torch is built for."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    with suppress(OSError):
        built = re.search(r"^cuda\b.*= '(\d+)\.", Path(spec.origin).with_name("version.py").read_text(), re.MULTILINE)
        return int(built[1]) if built else None
    return None


def _nvml() -> tuple[int, int] | None:
    """NVML's number of GPUs, and the main version of the CUDA that its driver knows."""
    try:
        nvml = ctypes.CDLL(NVML)
        if nvml.nvmlInit_v2():
            return None
        number, version = ctypes.c_uint(), ctypes.c_int()
        failed = nvml.nvmlDeviceGetCount_v2(ctypes.byref(number))
        failed = nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(version)) or failed
        nvml.nvmlShutdown()
    except (OSError, AttributeError):  # no such library, or one of another time
        return None
    return None if failed else (number.value, version.value // 1000)
