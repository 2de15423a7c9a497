"""Rows that are no run: what raw pixels recognise, how far real images are from real images, and one blur from them.

They stand behind the method interface, so that they pass through the very same evals; each joins the evals whose verb
it has (`harness.evaluation.can`). A method that does not beat raw pixels has learned nothing, and a distance below
that of real images says that the sample is too small or the training set was copied; one above the mean image's,
that samples are worse than none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.data.pixels import to_float
from harness.method import Method, Tap, require_taps
from harness.rng import Rng

if TYPE_CHECKING:
    from harness.data.dataset import Dataset, Part

# Shapes: B images, C channels, H height, W width.


class RawPixels(Method):
    """The images themselves as features."""

    def __init__(self, data: Dataset) -> None:
        super().__init__()
        self.data, self.config = data.spec, None  # images of other data sets are resized to it (harness/fitted.py)

    def taps(self) -> list[Tap]:
        return [Tap("pixels")]

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        require_taps(self, taps)
        return [images if dense else images.flatten(1) for _ in taps]


class RealImages(Method):
    """Real test images in place of samples: the distance that a perfect method would have. Every set is another.

    They come through the test split's door, which records it. Where more are asked for than there are, every image
    is shown about equally often (the eval's record says how many are distinct); that raises the distance, so this row
    errs on the side of the methods. A held-out part of train would not do: the reference is all of train.
    """

    def __init__(self, data: Dataset) -> None:
        super().__init__()
        self._data = data
        self._test: Part | None = None

    def sample(self, n: int, rng: Rng, labels: Tensor | None = None, steps: int | None = None) -> Tensor:
        """Images number `first` to `first + n` in a fixed random order, where `first` is the last key of `rng`."""
        *which, first = rng.path
        if not isinstance(first, int):
            raise ValueError(f"the last key must be the index of the first sample, not {first!r}")
        if first == 0 or self._test is None:  # one opening for each set of samples
            self._test = self._data.open_test(by="real images, in place of samples")
        order = Rng(0).at(*which).permutation("real images", len(self._test.labels))
        index = order[torch.arange(first, first + n) % len(order)]
        return to_float(self._test.images[index]).to(rng.device)

    def sampler(self, steps: int | None = None) -> str:
        return ""


class MeanImage(Method):
    """The mean of all training images in place of every sample: the distance of a method that draws one blur."""

    def __init__(self, data: Dataset) -> None:
        super().__init__()
        images = data.train.images
        total = sum(part.double().sum(dim=0) for part in images.split(1000))
        self._mean = to_float((total / len(images)).round())

    def sample(self, n: int, rng: Rng, labels: Tensor | None = None, steps: int | None = None) -> Tensor:
        return self._mean.expand(n, -1, -1, -1).to(rng.device)

    def sampler(self, steps: int | None = None) -> str:
        return ""


REFERENCES: dict[str, type[Method]] = {"raw pixels": RawPixels, "real images": RealImages, "mean image": MeanImage}
