"""What a device can do at most, for MFU: model FLOP/s over the device's peak (2 FLOP per multiply-accumulate).

Peaks are dense rates as the makers' data sheets and architecture papers state them, halved where only the rate with
structured sparsity is printed: NVIDIA's sheets of the H100, H200, A100, A30, A10, A40, L4, L40, L40S, V100, T4 and RTX
A6000; its GA102 and Ada papers (appendix A) for GeForce, at the tensor rate that accumulates in float32; AMD's sheet of
the MI300X. A processor has no stated peak, and neither has a slice of a GPU.
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
    r"NVIDIA H100 NVL|NVIDIA H200 NVL": (835.5, 417.5, 60.0),
    r"NVIDIA A100.*|A100-.*": (312.0, 156.0, 19.5),
    r"NVIDIA A30": (165.0, 82.0, 10.3),
    r"NVIDIA A10": (125.0, 62.5, 31.2),
    r"NVIDIA A40": (149.7, 74.8, 37.4),
    r"NVIDIA RTX A6000": (154.8, 77.4, 38.7),
    r"NVIDIA L4": (121.0, 60.0, 30.3),
    r"NVIDIA L40": (181.05, 90.5, 90.5),
    r"NVIDIA L40S": (362.05, 183.0, 91.6),
    r"NVIDIA GeForce RTX 3090": (71.0, 35.6, 35.6),
    r"NVIDIA GeForce RTX 4090": (165.2, 82.6, 82.6),
    r"Tesla V100-SXM2-.*": (None, None, 15.7),
    r"Tesla V100-PCIE-.*": (None, None, 14.0),
    r"Tesla V100S-PCIE-.*": (None, None, 16.4),
    r"Tesla T4": (None, None, 8.1),
    r"AMD Instinct MI300X.*": (1307.4, 653.7, 163.4),
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
