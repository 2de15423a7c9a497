"""EDM's augmentation: flips and one affine warp of each image, and a label that tells the network what was done.

Being told, the network keeps the changes out of what it draws without a label. Shapes: B batch, C channels, H x W px.
References: Karras et al. 2022, appendix F.2, after Karras et al. 2020 ("Training generative adversarial networks with
limited data"), appendix B; card ddae, section 3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.rng import Rng

LABEL = 9  # numbers that say what was done
SCALE = 0.2  # deviation of both scalings' log2
SHIFT = 1 / 8  # deviation of the shift, as a share of the side
# The low-pass filter of Daubechies' least asymmetric wavelet with six vanishing moments. Even shifts are orthogonal,
# so that going up and down again gives the image back.
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
EDGE = len(SYM6) // 4  # px beside the image that the way down needs


class Warp(NamedTuple):
    """What is done to each image, in this order; zeros leave it as it is."""

    flip: Tensor  # bool [B, 2]: left and right, up and down
    scale: Tensor  # [B] log2, in units of SCALE
    turn: Tensor  # [B] radians
    stretch: Tensor  # [B] log2 along one axis and its inverse across, in units of SCALE
    axis: Tensor  # [B] of the stretch, radians
    shift: Tensor  # [B, 2] right and down, in units of SHIFT

    @classmethod
    def drawn(cls, batch: int, share: float, rng: Rng) -> Warp:
        """Each operation for a `share` of the images, left and right for half of them."""

        def some(key: str, values: Tensor, share: float = share) -> Tensor:
            chosen = rng.uniform(f"{key} for", (batch,)) < share
            return values * chosen.view(-1, *[1] * (values.ndim - 1))

        def angle(key: str) -> Tensor:
            return (2 * rng.uniform(key, (batch,)) - 1) * math.pi

        sides = rng.uniform("flip", (batch, 2)) < 0.5
        return cls(
            flip=torch.stack([sides[:, 0], some("flip", sides[:, 1])], dim=1),
            scale=some("scale", rng.normal("scale", (batch,))),
            turn=some("turn", angle("turn")),
            stretch=some("stretch", rng.normal("stretch", (batch,))),
            axis=some("axis", angle("axis"), 0.5),
            shift=some("shift", rng.normal("shift", (batch, 2))),
        )

    def label(self) -> Tensor:
        """[B, 9]; zeros for an image that is left as it is."""
        along = torch.stack([self.axis.cos(), self.axis.sin()], dim=1)
        turned = torch.stack([self.turn.cos() - 1, self.turn.sin()], dim=1)
        parts = [self.flip, self.scale[:, None], turned, self.stretch[:, None] * along, self.shift]
        return torch.cat([part.float() for part in parts], dim=1)

    def applied(self, images: Tensor) -> Tensor:
        """`images` [B, C, H, W] after it; beside them their own mirror image is seen."""
        left, up = self.flip.to(images.device).view(-1, 2, 1, 1, 1).unbind(1)
        images = torch.where(left, images.flip(3), images)
        images = torch.where(up, images.flip(2), images)
        with torch.autocast(images.device.type, enabled=False):
            return self._warped(images.float())

    def source(self, points: Tensor, side: Tensor) -> Tensor:
        """Where in the image `points` [P, 2] of the result are taken from, [B, P, 2]; x and y in px from the centre."""
        grown, stretched = (-SCALE * self.scale).exp2(), (SCALE * self.stretch).exp2()
        back = torch.diag_embed(torch.stack([1 / stretched, stretched], dim=1))  # inverse of the stretch
        matrix = grown.view(-1, 1, 1) * _turn(self.turn) @ _turn(self.axis).mT @ back @ _turn(self.axis)
        moved = points - (SHIFT * side * self.shift)[:, None]
        return moved @ matrix.mT

    def _warped(self, images: Tensor) -> Tensor:
        """The warp at twice the resolution, so that bilinear sampling blurs little."""
        height, width = images.shape[2:]
        device = self.shift.device  # a few numbers an image: where they were drawn is where they are worked out
        side = torch.tensor([width, height], device=device)
        half = (side - 1) / 2
        corners = torch.cartesian_prod(*(torch.stack([-h, h]) for h in half))
        reached = self.source(corners, side).flatten(0, 1)
        # How far beside the image the result looks, a filter's length included; never beyond the mirror image.
        before, after = (_clamped(reach + 2 * EDGE - half, side - 1) for reach in (-reached.amin(0), reached.amax(0)))
        images = F.pad(images, [before[0], after[0], before[1], after[1]], mode="reflect")
        offset = torch.tensor([(b - a) / 2 for b, a in zip(before, after, strict=True)], device=device)

        lattice = [(torch.arange(2 * n, device=device) - n + 1) / 2 for n in (height + 2 * EDGE, width + 2 * EDGE)]
        down, right = torch.meshgrid(*lattice, indexing="ij")
        points = torch.stack([right, down], dim=-1).flatten(0, 1)
        padded = torch.tensor([images.shape[3], images.shape[2]], device=device)
        # Pixel p from the centre lies at 2 p - 1/2 of the finer lattice, whose half width is `padded`.
        grid = (2 * (self.source(points, side) + offset) - 0.5) / padded
        grid = grid.unflatten(1, right.shape).to(images.device)
        return _halved(F.grid_sample(_doubled(images), grid, mode="bilinear", align_corners=False))


def _turn(angle: Tensor) -> Tensor:
    """Rotations [B, 2, 2] by `angle` [B]."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([c, -s, s, c], dim=1).unflatten(1, (2, 2))


def _clamped(reach: Tensor, most: Tensor) -> list[int]:
    return [math.ceil(min(max(r, 0.0), m)) for r, m in zip(reach.tolist(), most.tolist(), strict=True)]


def _filter(images: Tensor) -> tuple[Tensor, int]:
    return torch.tensor(SYM6, device=images.device).expand(images.shape[1], 1, 1, -1), images.shape[1]


def _doubled(images: Tensor) -> Tensor:
    """Images of twice the resolution."""
    kernel, channels = _filter(images)
    wide = F.conv_transpose2d(images, kernel, stride=(1, 2), padding=(0, 5), groups=channels)
    return F.conv_transpose2d(wide, kernel.mT, stride=(2, 1), padding=(5, 0), groups=channels)


def _halved(images: Tensor) -> Tensor:
    """Images of half the resolution, without what lies beside them."""
    kernel, channels = _filter(images)
    narrow = F.conv2d(images, kernel, stride=(1, 2), padding=(0, 5), groups=channels)
    return F.conv2d(narrow, kernel.mT, stride=(2, 1), padding=(5, 0), groups=channels)[..., EDGE:-EDGE, EDGE:-EDGE]
