"""A folder that timm loads: config.json with the architecture, model.safetensors with the tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.errors import HarnessError
from harness.export.folders import made
from harness.files import write_atomic
from harness.method import Method, Tap
from harness.rng import Rng

TOLERANCE = 1e-4  # of the features' largest value; a wrong fold is off by far more, float32 by far less
IMAGES = 8


def write_timm(
    place: Path, method: Method, tap: Tap, to_timm: Callable[[Method, Tap], Any], about: dict[str, Any]
) -> list[str]:
    """Write the encoder whose output is the method's feature at `tap`; lines that say how to load it.

    Raises HarnessError, and leaves nothing, when timm's output differs from the method's.
    """
    from safetensors.torch import save

    from backbones.timm_vit import BASE
    from harness.checkpoint import apart

    vit = to_timm(method, tap)
    config = {
        "architecture": BASE,
        "num_classes": 0,
        "num_features": vit.args["embed_dim"],
        "global_pool": vit.args["global_pool"],
        "model_args": vit.args,
        "pretrained_cfg": _input(vit.args),
        "harness": about | {"tap": str(tap)},
    }
    with made(place) as folder:
        write_atomic(folder / "model.safetensors", save(apart(vit.state), {"format": "pt"}))
        write_atomic(folder / "config.json", json.dumps(config, indent=1) + "\n")
        difference = _difference(folder, method, tap)
    words = "".join(f", {key}={value!r}" for key, value in vit.args.items())
    return [
        f'timm.create_model("local-dir:{place}", pretrained=True)',
        f'timm.create_model("{BASE}", checkpoint_path="{place / "model.safetensors"}"{words})',
        f"images in [-1, 1] give the feature at tap {tap}; largest difference to it {difference:.1e} (relative)",
    ]


def _input(args: dict[str, Any]) -> dict[str, Any]:
    """What timm's loaders do to an image before it comes in: nothing but bringing it to [-1, 1]."""
    half = [0.5] * args["in_chans"]
    return {
        "input_size": [args["in_chans"], args["img_size"], args["img_size"]],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": half,
        "std": half,
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


@torch.no_grad()
def _difference(folder: Path, method: Method, tap: Tap) -> float:
    """The largest difference between timm's output and the method's, as a share of the largest feature."""
    import timm

    spec = method.data
    images = Rng(0).uniform("images", (IMAGES, spec.channels, spec.size, spec.size)) * 2 - 1
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    ours = method.features(images, [tap], Rng(0))[0]
    difference = float((theirs - ours).abs().max() / ours.abs().max().clamp(min=1e-30))
    if theirs.shape != ours.shape or not difference < TOLERANCE:
        raise HarnessError(f"timm's output differs from the method's by {difference:.1e} of it", f"below {TOLERANCE:g}")
    return difference
