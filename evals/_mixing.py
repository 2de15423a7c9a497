"""What a fine-tune does to its images beyond crop and mirror: torchvision's RandAugment, erasing, mixup and cutmix.

torchvision draws from torch's global generator, which follows our key meanwhile (`Rng.lent`), and draws once for a
whole batch. RandAugment and erasing are therefore given `GROUP` images at a time: images of a group share the draw.
MAE's RandAugment varies its magnitude a little; torchvision's does not.

Shapes: B images, C channels, S side, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from evals._recipe import Recipe
from harness.data.pixels import to_float, to_uint8
from harness.rng import Rng

GROUP = 8


def strengthened(images: Tensor, recipe: Recipe, rng: Rng) -> Tensor:
    """Float [B, C, S, S] in [-1, 1] after RandAugment and erasing with noise."""
    if recipe.ops == recipe.erase == 0:
        return images
    from torchvision.transforms import v2

    augment = v2.RandAugment(recipe.ops, recipe.magnitude, num_magnitude_bins=11)
    erase = v2.RandomErasing(recipe.erase, value="random")
    done = []
    with rng.lent("strengthen"):
        for group in images.split(GROUP):
            if recipe.ops:
                group = to_float(augment(to_uint8(group)))
            done.append(erase(group))
    return torch.cat(done)


def mixed(images: Tensor, labels: Tensor, classes: int, recipe: Recipe, rng: Rng) -> tuple[Tensor, Tensor]:
    """Images and labels as shares [B, K], each image mixed with its neighbour: blended (mixup) or pasted (cutmix)."""
    from torchvision.transforms import v2

    kinds = [kind(alpha=a) for kind, a in ((v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix)) if a]
    shares = F.one_hot(labels, classes).to(images)
    if not kinds:
        return images, shares
    kind = kinds[rng.number("kind") % len(kinds)]
    with rng.lent("mix"):
        return kind(images, shares)
