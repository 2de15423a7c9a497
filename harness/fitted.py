"""A network behind the method interface, at a data set whose images have another size than its own.

Released weights are evaluated so, and runs on data sets that they were not pre-trained on (transfer).

Shapes: B images, C channels, S the data set's side, N the network's side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.data.pixels import to_float
from harness.errors import HarnessError
from harness.method import Augment, Batch, DataSpec, Loss, Method, Optim, Preparation, Tap, require_taps
from harness.rng import Rng

if TYPE_CHECKING:
    from backbones.heads import Measures

UPDATES, BATCH = 128, 16  # batches of training images, and images in each, for what drawing needs beside the file
PIXELS = 16 * 256**2  # pixels that pass through a network at once: 256 images up to 64 px, 20 at 224 px


class Fitted(Method):
    """The features of `inner`, for images [B, C, S, S] resized to its own side; grey ones are given three channels.

    Large images pass in slices; noise is then keyed by the slice.
    """

    def __init__(self, inner: Method, data: DataSpec) -> None:
        super().__init__()
        if isinstance(inner, Fitted):  # released weights on a further data set: images are resized once
            inner = inner.inner
        if inner.data.channels != data.channels and (inner.data.channels, data.channels) != (3, 1):
            raise HarnessError(
                f"a network for images of {inner.data.channels} channel(s), and {data.name} of {data.channels}",
                "a data set of as many channels, or a grey one for a network of colours",
            )
        self.inner, self.data, self.config = inner, data, inner.config
        self.slice = max(1, PIXELS // inner.data.size**2)

    def taps(self) -> list[Tap]:
        return self.inner.taps()

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        require_taps(self, taps)
        if len(images) <= self.slice:
            return self.inner.features(self._for_network(images), taps, rng, dense)
        slices = images.split(self.slice)
        found = [
            self.inner.features(self._for_network(part), taps, rng.at("slice", number), dense)
            for number, part in enumerate(slices)
        ]
        return [torch.cat(of_tap) for of_tap in zip(*found, strict=True)]

    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups()

    def preparation(self) -> Preparation | None:
        return self.inner.preparation()

    def maps(self) -> list[Tap]:
        return self.inner.maps()

    def fusion(self) -> list[list[Tap]]:
        return self.inner.fusion()

    def feedback_head(self, classes: int, measures: Measures) -> nn.Module | None:
        head = self.inner.feedback_head(classes, measures)
        return None if head is None else _HeadOnResized(head, self._for_network)

    def _for_network(self, images: Tensor) -> Tensor:
        if self.inner.data.channels > images.shape[1]:
            images = images.expand(-1, self.inner.data.channels, -1, -1)
        return resized(images, self.inner.data.size)

    def remarks(self) -> list[str]:
        """What is done to the images, for the record and the tables."""
        mine, own = self.data.size, self.inner.data.size
        said = f"images of {mine} px are resized to the network's {own} px (bicubic, antialiased)"
        grey = self.inner.data.channels > self.data.channels
        return ([] if mine == own else [said]) + (["grey images are given to a network of colours"] if grey else [])


class _HeadOnResized(nn.Module):
    """A head that runs the network by itself, for images [B, C, S, S] of the data set."""

    def __init__(self, head: nn.Module, resize: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self._resize = head, resize

    def forward(self, images: Tensor, rng: Rng) -> Tensor:
        return self.head(self._resize(images), rng)


class FittedDrawing(Fitted):
    """And its samples, brought to the data set's size.

    `complete` is called before the first sample, with batches of training images as the network sees them.
    """

    def __init__(
        self,
        inner: Method,
        data: DataSpec,
        complete: Callable[[Method, Iterable[Tensor], Rng], None] | None = None,
        images: Tensor | None = None,  # uint8 [n, C, S, S], what `complete` may look at
    ) -> None:
        super().__init__(inner, data)
        self._complete, self._images = complete, images

    def _completed(self) -> None:
        if self._complete is None:
            return
        device = next(self.inner.parameters()).device
        order = Rng(0).permutation("complete", len(self._images))[: UPDATES * BATCH]
        batches = (self._for_network(to_float(self._images[some]).to(device)) for some in order.split(BATCH))
        self._complete(self.inner, batches, Rng(0).to(device))
        self._complete = None

    @torch.no_grad()
    def sample(self, n: int, rng: Rng, labels: Tensor | None = None, steps: int | None = None, **how: Any) -> Tensor:
        self._completed()
        counts = [min(self.slice, n - start) for start in range(0, n, self.slice)]
        if len(counts) == 1:
            return self._for_data(self.inner.sample(n, rng, labels, steps, **how))
        parts = [None] * len(counts) if labels is None else labels.split(self.slice)
        drawn = [
            self._for_data(self.inner.sample(count, rng.at("slice", i), part, steps, **how))
            for i, (count, part) in enumerate(zip(counts, parts, strict=True))
        ]
        return torch.cat(drawn)

    def sampler(self, steps: int | None = None) -> str:
        return self.inner.sampler(steps)

    def _for_data(self, images: Tensor) -> Tensor:
        if self.data.channels < images.shape[1]:
            images = images.mean(dim=1, keepdim=True)
        return resized(images, self.data.size)

    def remarks(self) -> list[str]:
        mine, own = self.data.size, self.inner.data.size
        sized = [] if mine == own else [f"samples of {own} px are resized to {mine} px"]
        grey = self.inner.data.channels > self.data.channels
        return super().remarks() + sized + (["samples are made grey by the mean of their channels"] if grey else [])


class FittedLabelled(FittedDrawing):
    """And what a labelled generative training makes of it, on the data set's images and labels."""

    def labelled(self) -> Method:
        self.inner.data = replace(self.inner.data, classes=self.data.classes)
        return _Learning(self.inner.labelled(), self.data)


class _Learning(FittedDrawing):
    """The network in that training: its own objective, on images resized for it."""

    sees_labels = True

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        images = None if batch.images is None else self._for_network(batch.images)
        return self.inner.pretrain(batch._replace(images=images), progress, rng)

    def cached(self, images: Tensor) -> Tensor | None:
        return self.inner.cached(self._for_network(images))

    def optim(self, batch_size: int) -> Optim:
        return self.inner.optim(batch_size)

    def augment(self) -> Augment:
        return self.inner.augment()

    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups()


def resized(images: Tensor, side: int) -> Tensor:
    """[B, C, ...] to [B, C, side, side], in [-1, 1]."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images.float(), side, mode="bicubic", antialias=True).clamp(-1, 1)
