"""What a detector is given of a part of the data: the maps of every image, cut from a square of whole tiles, and boxes.

An image is scaled, its shape kept, until its longer side is the square's, and lies in the square's upper left corner;
the rest is mid-grey. The maps of an image are read by themselves, with noise keyed by the image: whether they are kept
or read again changes no bit.

Shapes: B images, D map width, P side of the square in px, G side of its map, m boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from evals._average_precision import Detections
from evals._tiles import tiled_maps
from harness.data.pixels import to_float
from harness.evaluation.features import in_half

if TYPE_CHECKING:
    from harness.data.coco import BoxPart
    from harness.method import Method, Tap
    from harness.rng import Rng


def fitting(size: tuple[int, int], square_px: int) -> tuple[int, int]:
    """Width and height, in px, of an image of `size` within its square."""
    ratio = square_px / max(size)
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def square(image: Tensor, square_px: int) -> Tensor:
    """[3, P, P] in [-1, 1] of uint8 [3, h, w]."""
    width, height = fitting((image.shape[2], image.shape[1]), square_px)
    scaled = to_float(image)[None]
    if (height, width) != tuple(image.shape[1:]):
        scaled = F.interpolate(scaled, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
    return F.pad(scaled[0], (0, square_px - width, 0, square_px - height))


def _scale(size: tuple[int, int], square_px: int) -> Tensor:
    """[4]: px of the square for a px of an image of `size`, each way for itself, since the fitted sides are whole."""
    width, height = fitting(size, square_px)
    return torch.tensor([width / size[0], height / size[1]] * 2)


def _within(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """`boxes` [m, 4] cut to an image of `size`."""
    width, height = size
    return boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2, dtype=boxes.dtype))


def into_square(boxes: Tensor, size: tuple[int, int], square_px: int) -> Tensor:
    """Boxes [m, 4] of an image of `size`, in px of its square."""
    return _within(boxes, size) * _scale(size, square_px)


def from_square(found: Detections, size: tuple[int, int], square_px: int) -> Detections:
    """Detections in px of the square, in those of the image of `size`; what lies beside the image is left out."""
    boxes = _within(found.boxes / _scale(size, square_px), size)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return Detections(boxes[inside], found.scores[inside], found.labels[inside])


class Kept:
    """Maps in half precision, as many as fit into `limit_bytes`."""

    def __init__(self, limit_bytes: float) -> None:
        self._left = limit_bytes
        self._maps: dict[Hashable, Tensor] = {}

    def get(self, place: Hashable) -> Tensor | None:
        return self._maps.get(place)

    def put(self, place: Hashable, maps: Tensor) -> None:
        if maps.nbytes <= self._left:
            self._left -= maps.nbytes
            self._maps[place] = maps


class Squares:
    """The images of a part as the maps of `method` at a tap, and their boxes; `rng` is of the part."""

    def __init__(
        self, method: Method, tap: Tap, part: BoxPart, tile_px: int, square_px: int, rng: Rng, within: Within
    ) -> None:
        self.part, self.tile_px, self.square_px = part, tile_px, square_px
        self._method, self._tap, self._rng, self._within = method, tap, rng, within

    def __len__(self) -> int:
        return len(self.part)

    def images(self, index: Tensor) -> Tensor:
        """[B, 3, P, P] in [-1, 1] on the device, of the images at `index` [B]."""
        return torch.stack([square(self.part.image(int(i)), self.square_px) for i in index]).to(self._rng.device)

    def maps(self, index: Tensor) -> Tensor:
        """[B, D, G, G] float32 on the device, without gradient."""
        return torch.stack([self._one(int(i)) for i in index]).to(self._rng.device).float()

    def targets(self, index: Tensor) -> list[dict[str, Tensor]]:
        """What torchvision's detectors learn from: boxes in px of the square, and labels; crowds are no examples."""
        found = []
        for i in index.tolist():
            objects = self.part.objects(i)
            single = ~objects.crowd
            boxes = into_square(objects.boxes[single], self.part.size(i), self.square_px)
            target = {"boxes": boxes, "labels": objects.labels[single]}
            found.append({name: values.to(self._rng.device) for name, values in target.items()})
        return found

    def _one(self, i: int) -> Tensor:
        number = int(self.part.index[i])
        # The maps of a tap without noise are the same under every seed.
        place = (self.part.listed, number, self._tap, None if self._tap.noise is None else self._rng)
        maps = self._within.kept.get(place)
        if maps is None:
            maps = self._read(i, self._rng.at(number))
            self._within.kept.put(place, maps)
        return maps

    def _read(self, i: int, rng: Rng) -> Tensor:
        with torch.no_grad(), self._within.autocast():
            maps = tiled_maps(self._method, self.images(torch.tensor([i])), self._tap, self.tile_px, rng)[0]
        return in_half(maps, self._method, self._tap)


class Within(NamedTuple):
    """What all parts share."""

    kept: Kept
    autocast: Callable[[], AbstractContextManager]

    def forgetful(self) -> Within:
        """For a network that will not be read again."""
        return self._replace(kept=Kept(0))


def moments(squares: Squares, n: int = 64) -> tuple[Tensor, Tensor, int]:
    """Mean and scale, float32 [D] each, of the maps of the first `n` images, and G.

    A constant channel keeps the scale 1.
    """
    count, total, square_sum = 0, 0.0, 0.0
    for index in torch.arange(min(n, len(squares))).split(8):
        maps = squares.maps(index).double()
        count += len(maps) * maps.shape[2] * maps.shape[3]
        total, square_sum = total + maps.sum(dim=(0, 2, 3)), square_sum + maps.square().sum(dim=(0, 2, 3))
    mean = total / count
    scale = (square_sum / count - mean.square()).clamp_min(0).sqrt()
    scale = torch.where(scale <= 1e-6 * mean.abs(), torch.ones_like(scale), scale)
    return mean.float().cpu(), scale.float().cpu(), maps.shape[-1]
