"""torchvision's detectors on a pyramid that is made of a single map, and their training.

The pyramid is ViTDet's simple one (Li et al. 2022, arXiv 2203.16527, section 3): each level comes from the one map by
itself, finer ones by transposed convolutions of stride 2, coarser ones by max pooling. Its levels stand at the same
strides for every method, wherever the method's own map stands; a map whose stride is no power of two is first brought
to the nearest that is.

Shapes: B images, D map width, P side of the square in px, G side of its map, E width of the pyramid.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import MultiScaleRoIAlign

from evals._average_precision import Detections
from evals._heads import course

Kind = Literal["fcos", "retinanet", "faster-rcnn"]
SCORE_LEAST = 0.05  # of a detection that is kept; RetinaNet's and Faster R-CNN's default, here FCOS's too
PER_IMAGE = 100  # detections, as many as the evaluator counts
CLIP_NORM = 1.0  # of the gradient
WEIGHT_DECAY = 0.05


@dataclass(frozen=True)
class Shape:
    """What is built."""

    kind: Kind
    classes: int  # without the background
    square_px: int
    strides: tuple[int, ...]  # of the pyramid, in px of the square
    width: int
    convs: int  # in each tower of FCOS's head; the other two have their own


class Pyramid(nn.Module):
    """Maps [B, D, G, G], standardised, to levels [B, E, P / stride, P / stride]."""

    def __init__(self, shape: Shape, depth: int, grid: int, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        power = min(round(math.log2(shape.square_px / grid)), round(math.log2(shape.strides[-1])))
        self.grid = shape.square_px >> power
        steps = [power - round(math.log2(stride)) for stride in shape.strides]
        self.levels = nn.ModuleList(_level(depth, shape.width, step) for step in steps)

    def forward(self, maps: Tensor) -> OrderedDict[str, Tensor]:
        maps = (maps - self.mean) / self.scale
        if maps.shape[-1] != self.grid:
            maps = F.interpolate(maps, (self.grid, self.grid), mode="bilinear", antialias=True)
        return OrderedDict((str(number), level(maps)) for number, level in enumerate(self.levels))


def _level(depth: int, width: int, step: int) -> nn.Sequential:
    """From maps of `depth` channels to one level, `step` times doubled (halved, where negative)."""
    layers: list[nn.Module] = []
    if step < 0:
        layers.append(nn.MaxPool2d(2**-step))
    for number in range(step):
        layers += [nn.ConvTranspose2d(depth, width, 2, stride=2), *([] if number == step - 1 else [nn.GELU()])]
        depth = width
    layers += [
        nn.Conv2d(depth, width, 1),
        LayerNorm2d(width),
        nn.Conv2d(width, width, 3, padding=1),
        LayerNorm2d(width),
    ]
    return nn.Sequential(*layers)


class Handed(nn.Module):
    """The backbone that a detector sees: the pyramid on maps that were read beforehand."""

    def __init__(self, pyramid: Pyramid, width: int) -> None:
        super().__init__()
        self.pyramid, self.out_channels = pyramid, width
        self.maps: Tensor | None = None

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        assert self.maps is not None and len(self.maps) == len(images)
        return self.pyramid(self.maps)


class Detector(nn.Module):
    """One of torchvision's detectors, given maps [B, D, G, G] in place of images.

    The detector itself sees blank images, from which it takes no more than the side of the square: it neither resizes
    nor normalises anything.
    """

    def __init__(self, shape: Shape, depth: int, grid: int, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.square_px = shape.square_px
        self.handed = Handed(Pyramid(shape, depth, grid, mean, scale), shape.width)
        self.detector = _detector(shape, self.handed)

    def losses(self, maps: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        """The sum of the detector's losses; draws from torch's own generator."""
        self.train()
        self.handed.maps = maps
        return torch.stack(list(self.detector(self._blank(len(maps)), targets).values())).sum()

    @torch.no_grad()
    def detections(self, maps: Tensor) -> list[Detections]:
        """What is found, in px of the square."""
        self.eval()
        self.handed.maps = maps
        found = self.detector(self._blank(len(maps)))
        return [Detections(f["boxes"].cpu(), f["scores"].cpu(), f["labels"].cpu()) for f in found]

    def _blank(self, n: int) -> list[Tensor]:
        return list(self.handed.pyramid.mean.new_zeros(n, 3, self.square_px, self.square_px))


def _detector(shape: Shape, backbone: Handed) -> nn.Module:
    side = shape.square_px
    given = {
        "fixed_size": (side, side),
        "size_divisible": 1,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
    }
    kept = {"score_thresh": SCORE_LEAST, "detections_per_img": PER_IMAGE}
    classes = shape.classes + 1  # 0 is the background
    if shape.kind == "fcos":
        anchors = _anchors(shape.strides, (1.0,), (1.0,))
        head = FCOSHead(shape.width, 1, classes, shape.convs)
        return FCOS(backbone, classes, anchor_generator=anchors, head=head, **kept, **given)
    sizes = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)) if shape.kind == "retinanet" else (4.0,)
    anchors = _anchors(shape.strides, sizes, (0.5, 1.0, 2.0))
    if shape.kind == "retinanet":
        return RetinaNet(backbone, classes, anchor_generator=anchors, **kept, **given)
    # Anchors half as large as torchvision's, for small squares; the hidden layer follows the pyramid (1024 at 256).
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        box_head=TwoMLPHead(shape.width * 7 * 7, 4 * shape.width),
        box_predictor=FastRCNNPredictor(4 * shape.width, classes),
        box_roi_pool=MultiScaleRoIAlign([str(number) for number in range(len(shape.strides))], 7, sampling_ratio=2),
        box_score_thresh=SCORE_LEAST,
        box_detections_per_img=PER_IMAGE,
        **given,
    )


def _anchors(strides: Sequence[int], sizes: Sequence[float], ratios: Sequence[float]) -> AnchorGenerator:
    """Anchors of `sizes`, in strides, at each level.

    torchvision centres them on the corners of the map's places; here they stand in the middle, where a patch is.
    """
    anchors = AnchorGenerator(
        tuple(tuple(stride * size for size in sizes) for stride in strides), (tuple(ratios),) * len(strides)
    )
    anchors.cell_anchors = [cell + stride / 2 for cell, stride in zip(anchors.cell_anchors, strides, strict=True)]
    return anchors


# -- training ---------------------------------------------------------------------------------------------------------


def train(
    parameters: Sequence[dict],
    loss: Callable[[Tensor, int], Tensor],
    n: int,
    epochs: int,
    batch: int,
    order: Callable[[int], Tensor],
) -> bool:
    """Train by AdamW after a tenth of warm-up and a cosine; whether the loss stayed finite, else it stops there.

    `parameters` are groups with their peak rate; `loss(index, step)` is of the examples at `index` [B] of n;
    `order(epoch)` is a permutation of n. The last incomplete batch of an epoch is left out.
    """
    optimizer = torch.optim.AdamW(list(parameters), weight_decay=WEIGHT_DECAY)
    peaks = [group["lr"] for group in optimizer.param_groups]
    batch = min(batch, n)
    steps = epochs * (n // batch)
    for step in range(steps):
        epoch, place = divmod(step, n // batch)
        index = order(epoch)[place * batch : (place + 1) * batch]
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * course("cosine", step, steps)
        optimizer.zero_grad()
        value = loss(index, step)
        if not torch.isfinite(value):
            return False
        value.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], CLIP_NORM)
        optimizer.step()
    return True
