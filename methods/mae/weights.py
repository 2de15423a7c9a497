"""Official MAE weights (facebookresearch/mae: the "model" of a pre-training file, or its encoder alone) in our terms.

The official network sees images standardised by ImageNet's mean and deviation, ours sees [-1, 1]: the patch embedding
takes up the difference, so that equal pixels give equal features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from backbones.masked_autoencoder_weights import DECODER, fitted_sampler, read_core
from harness.errors import HarnessError
from harness.released import Official
from harness.rng import Rng
from methods.mae.method import Config, Mae

DRAWING = DECODER
POOLED = """timm reads them: --format timm timm.model=vit_base_patch16_224.mae timm.args='{"global_pool": "avg"}'"""
RECIPE = "MAE: 800 or 1600 epochs of ImageNet-1k at 224 px; ViT-L for 800 took about 42 h on 64 V100"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]


def from_official(state: Mapping[str, Tensor]) -> Official:
    """Widths, depths, patch and side from the shapes, heads by convention; HarnessError where they are no MAE's."""
    core = read_core(state, "MAE", POOLED)
    if core.channels != 3:
        raise HarnessError(f"an MAE on {core.channels} channels", "3: official weights know ImageNet's colours")
    adapted = dict(state) | _adapted(state)
    config = Config(core.patch, core.encoder, core.decoder, sampler_every=0)
    notes = [
        *core.notes,
        "ImageNet's mean and deviation are folded into the patch embedding",
        "whether targets were standardised is not in the file: mae.norm_pix stays true. Predictions are of pixels "
        "standardised by ImageNet's mean and deviation",
    ]
    heads = [state[name] for name in ("head.weight", "head.1.weight") if name in state]  # fine-tuned, probed
    return Official(config, 3, core.side, len(heads[0]) if heads else 0, *core.settle(adapted), notes)


def _adapted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The patch embedding for pixels y in [-1, 1]: ((y + 1) / 2 - mean) / deviation = y * gain + offset, a channel."""
    if "patch_embed.proj.bias" not in state:
        return {}
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    mean, deviation = (torch.tensor(v, dtype=torch.float64) for v in (MEAN, DEVIATION))
    gain, offset = 0.5 / deviation, (0.5 - mean) / deviation
    precise = weight.double()  # [D, C, p, p]
    return {
        "patch_embed.proj.weight": (precise * gain.view(1, -1, 1, 1)).to(weight.dtype),
        "patch_embed.proj.bias": (bias.double() + (precise.sum(dim=(2, 3)) @ offset)).to(bias.dtype),
    }


def complete(method: Mae, batches: Iterable[Tensor], rng: Rng) -> None:
    """What drawing needs and no file holds, from training images [B, C, H, H]."""
    method.unmasking = fitted_sampler(method.core, (method.core.patches(images) for images in batches), rng)
