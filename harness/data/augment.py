"""Random resized crop and mirror for a whole batch at once: two batched matrix products, one per axis.

A crop enlarged to the full size is separable, so image b becomes Wy[b] @ image @ Wx[b]^T, with the crop box, the
interpolation and the mirror all in the weights. Boxes follow torchvision's RandomResizedCrop in distribution: ten
candidates, the first that fits, else the centre. Crops are never larger than the image, so nothing is averaged away and
no antialias exists; "bicubic" is Keys' kernel with a = -0.5 and weights renormalised at the crop's border, as Pillow
(which MAE's pipeline uses) computes it. torchvision's tensor path with antialias=False has a = -0.75 instead.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.method import Augment
from harness.rng import Rng

# Shapes: B batch, C channels, S side of the (square) images.

REACH = {"bicubic": 2, "bilinear": 1}  # pixels to either side that an interpolation looks at
TRIES = 10  # candidates of a crop box before the centre is taken, as in torchvision


class Boxes(NamedTuple):
    """Crop boxes of a batch, in pixels, and which images are mirrored; each [B], mirror as bool."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    mirror: Tensor


def augment(images: Tensor, spec: Augment, mirror_allowed: bool, rng: Rng) -> Tensor:
    """uint8 [B, C, S, S] to float32 [B, C, S, S] in [-1, 1] (bicubic may overshoot), on the images' device."""
    boxes = draw(len(images), images.shape[-1], spec, mirror_allowed, rng.to(images.device))
    return to_float(images) if boxes is None else resample(to_float(images), boxes, spec.interpolation)


def draw(n: int, side: int, spec: Augment, mirror_allowed: bool, rng: Rng) -> Boxes | None:
    """Boxes for `n` images, from keyed draws on `rng.device`; None where the spec leaves images as they are."""
    low, high = spec.crop
    if not 0 < low <= high <= 1 or not 0 < spec.aspect[0] <= spec.aspect[1]:
        raise HarnessError(f"crop={spec.crop}, aspect={spec.aspect}", "ranges (low, high) with crop within (0, 1]")
    mirrored = spec.mirror and mirror_allowed
    if low == 1 and not mirrored:
        return None
    mirror = rng.uniform("mirror", (n,)) < (0.5 if mirrored else 0.0)
    if low == 1:
        start, whole = torch.zeros_like(mirror, dtype=torch.float32), torch.full((n,), float(side), device=rng.device)
        return Boxes(start, start, whole, whole, mirror)
    height, width = _sides(n, side, spec, rng)
    top = (rng.uniform("top", (n,)) * (side - height + 1)).floor()
    left = (rng.uniform("left", (n,)) * (side - width + 1)).floor()
    return _centre_where_none_fits(Boxes(top, left, height, width, mirror), side, spec)


def _sides(n: int, side: int, spec: Augment, rng: Rng) -> tuple[Tensor, Tensor]:
    """Whole-pixel (height, width) [B] of the first candidate that fits; zeros where none does."""
    low, high = spec.crop
    area = side * side * (low + (high - low) * rng.uniform("area", (n, TRIES)))
    first, last = map(math.log, spec.aspect)
    aspect = torch.exp(first + (last - first) * rng.uniform("aspect", (n, TRIES)))
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (width > 0) & (width <= side) & (height > 0) & (height <= side)
    pick = fits.to(torch.uint8).argmax(1, keepdim=True)  # the first of equals
    return tuple((x * fits).gather(1, pick).squeeze(1) for x in (height, width))  # type: ignore[return-value]


def _centre_where_none_fits(boxes: Boxes, side: int, spec: Augment) -> Boxes:
    """The largest centred box of an allowed aspect, for a square image."""
    low, high = spec.aspect
    width = side if high >= 1 else round(side * high)
    height = side if low <= 1 else round(side / low)
    none = boxes.height == 0
    return boxes._replace(
        top=boxes.top.masked_fill(none, (side - height) // 2),
        left=boxes.left.masked_fill(none, (side - width) // 2),
        height=boxes.height.masked_fill(none, height),
        width=boxes.width.masked_fill(none, width),
    )


def resample(images: Tensor, boxes: Boxes, interpolation: str) -> Tensor:
    """Each image's box enlarged to the full side, and mirrored: float32 [B, C, S, S]."""
    b, c, _, side = images.shape
    start, length = torch.stack([boxes.top, boxes.left]), torch.stack([boxes.height, boxes.width])
    mirror = torch.stack([torch.zeros_like(boxes.mirror), boxes.mirror])  # an image is mirrored by its columns
    rows, columns = weights(start, length, mirror, side, interpolation)
    # Autocast would turn the products to half precision, and images with them.
    with torch.autocast(images.device.type, enabled=False):
        wide = torch.bmm(images.reshape(b, c * side, side), columns.mT)  # [B, C*S, S]
        return torch.matmul(rows[:, None], wide.view(b, c, side, side))


def weights(start: Tensor, length: Tensor, mirror: Tensor, side: int, interpolation: str) -> Tensor:
    """Share of input pixel j in output pixel i: [..., S (i), S (j)] of boxes [...]. Rows sum to 1.

    Pixels outside the box weigh nothing: the crop knows nothing of what surrounds it. Only the few taps that an output
    pixel reaches are computed, and scattered into zeros.
    """
    if interpolation not in REACH:
        raise HarnessError(f"unknown interpolation {interpolation!r}", " or ".join(REACH))
    reach = REACH[interpolation]
    start, length = start[..., None, None], length[..., None, None]
    place = torch.arange(side, dtype=torch.float32, device=start.device)
    i = torch.where(mirror[..., None], side - 1 - place, place)[..., None]  # [..., S, 1]
    centre = start + (i + 0.5) * (length / side) - 0.5
    taps = centre.floor() + torch.arange(1 - reach, reach + 1, device=start.device)  # [..., S, 2 reach]
    kernel = _kernel(interpolation, (centre - taps).abs_())
    kernel *= (taps >= start) & (taps < start + length)
    kernel /= kernel.sum(-1, keepdim=True)
    # Room on both sides for taps beyond the image, whose weight is zero.
    whole = torch.zeros(*kernel.shape[:-1], side + 2 * reach, device=start.device)
    return whole.scatter_(-1, taps.long() + reach, kernel)[..., reach : reach + side]


def _kernel(interpolation: str, distance: Tensor) -> Tensor:
    """Interpolation weight at a distance in pixels."""
    near = (1 - distance).clamp_(min=0)
    if interpolation == "bilinear":
        return near
    # Keys (1981) with a = -0.5, its two cubic pieces written as products that vanish outside their range:
    # (2d - 1) (1 - d)^2 for d < 1, plus (1 - d) (2 - d)^2 / 2 for d < 2.
    far = (2 - distance).clamp_(min=0).square_().mul_(1 - distance)
    return near.square_().mul_(2 * distance - 1).add_(far, alpha=0.5)
