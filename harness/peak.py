"""What a device can do at most, for MFU: model FLOP/s over the device's peak (2 FLOP per multiply-accumulate).

Peaks are dense rates as NVIDIA's data sheets state them, halved where only the rate with sparsity is printed.
The figures of the H100, A100, L40S, L4 and V100 were compared with published tables; the H200 has the chip of the
H100 SXM. A device that is not here has no peak unless the environment states one; nor has a slice of a GPU.
"""

from __future__ import annotations

import math
import os
import re

import torch

from harness.errors import HarnessError

ENVIRONMENT = "HARNESS_PEAK_TFLOPS"  # TFLOP/s of one device in the run's precision; counts before the table

# Name as torch gives it -> TFLOP/s in bf16, tf32, fp32; None where the device has no such units.
PEAKS: dict[str, tuple[float | None, float | None, float]] = {
    r"NVIDIA H100 80GB HBM3|NVIDIA H200": (989.4, 494.7, 66.9),
    r"NVIDIA H100 PCIe": (756.0, 378.0, 51.0),
    r"NVIDIA A100.*|A100-.*": (312.0, 156.0, 19.5),
    r"NVIDIA L4": (121.0, 60.0, 30.3),
    r"NVIDIA L40S": (362.05, 183.0, 91.6),
    r"Tesla V100-SXM2-.*": (None, None, 15.7),
}


def peak_flop_s(device: str, precision: str, tf32: bool = False) -> float | None:
    """Peak FLOP/s of one `device` in "bf16" or "fp32"; None where nobody states it.

    `tf32`: float32 products may be rounded to it. Raises HarnessError for a setting that is no number.
    """
    asked = stated()
    if asked is not None:
        return asked
    if "MIG" in device:
        return None
    for name, (bf16, tensor, fp32) in PEAKS.items():
        if re.fullmatch(name, device):
            tflop_s = bf16 if precision == "bf16" else (tensor if tf32 and tensor else fp32)
            return None if tflop_s is None else tflop_s * 1e12
    return None


def stated() -> float | None:
    """FLOP/s that the user states for a device, or None. Raises HarnessError for what is no positive number."""
    text = os.environ.get(ENVIRONMENT)
    if not text:
        return None
    try:
        tflop_s = float(text)
    except ValueError:
        tflop_s = math.nan
    if not 0 < tflop_s < math.inf:
        raise HarnessError(f"{ENVIRONMENT}={text!r}", "TFLOP/s of one device, above 0", f"{ENVIRONMENT}=989.4")
    return tflop_s * 1e12


def rounds_to_tf32() -> bool:
    """Whether torch lets the GPU round float32 products of convolutions or matrices to TF32."""
    return torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
