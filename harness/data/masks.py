"""Segmentation data: images with a class for every pixel, in parts to fit, to choose on and to test.

As for labelled images (dataset.py), `open_test` is the only way to the test part and records every opening. Pairs of an
image and its mask are decoded when they are read, so that no part need fit into memory. Where the makers give no part
to choose on, a tenth of train is held out by a fixed key. A mask says a class, 0 to classes - 1, or IGNORED.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.data import layouts
from harness.data.layouts import IGNORED, LONGEST, Stored
from harness.errors import HarnessError
from harness.records import TestOpened

# Shapes: H height and W width of an image, in pixels.


class Pair(NamedTuple):
    """An image and what its pixels show."""

    image: Tensor  # uint8 [3, H, W]; grey ones have three equal channels
    mask: Tensor  # uint8 [H, W]: a class, or IGNORED


@dataclass(frozen=True)
class MaskSpec:
    """What there is to know of a data set without its images."""

    name: str
    classes: int
    names: tuple[str, ...]  # of the classes


@dataclass(frozen=True)
class Pairs:
    """A part of the data: pairs in a fixed order, decoded when they are read."""

    stored: Stored
    order: np.ndarray  # int64 [n], positions among the stored pairs

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Pair]:
        return (self.read(i) for i in range(len(self)))

    def subset(self, index: Tensor | np.ndarray | slice) -> Pairs:
        """The pairs at `index` (positions in this part)."""
        return Pairs(self.stored, self.order[index if isinstance(index, slice) else np.asarray(index)])

    def read(self, i: int) -> Pair:
        """Pair `i`. Raises HarnessError, naming it, for one that is broken, or whose halves do not fit each other."""
        at = int(self.order[i])
        image, raw = _image(self.stored, at), _mask(self.stored, at)
        if raw.shape != (image.height, image.width):
            raise HarnessError(
                f"the mask of {self.stored.images.name(at)} is {raw.shape[1]} x {raw.shape[0]} pixels",
                f"{image.width} x {image.height}, as the image",
                "make both of one size, or take the pair out of the data set",
            )
        mask = self._classes(raw, at)
        if max(raw.shape) > LONGEST:
            share = LONGEST / max(raw.shape)
            size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
            image = image.resize(size, Image.Resampling.BICUBIC)
            mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        pixels = torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())
        return Pair(pixels, torch.from_numpy(mask.copy()))

    def _classes(self, raw: np.ndarray, at: int) -> np.ndarray:
        """uint8 of a mask as stored, with the classes from 0 on."""
        labelling = self.stored.labelling
        table = np.full(256, -1, np.int16)
        table[labelling.first : labelling.first + labelling.classes] = np.arange(labelling.classes)
        table[list(labelling.ignored)] = IGNORED
        found = table[np.minimum(raw, 255)]
        odd = (found < 0) | (raw > 255)
        if odd.any():
            last = labelling.first + labelling.classes - 1
            raise HarnessError(
                f"label {int(raw[odd][0])} in the mask of {self.stored.images.name(at)} is out of range",
                f"{labelling.first} to {last}, or {' or '.join(map(str, labelling.ignored))} for pixels to ignore",
                "mend the mask, or say how many classes there are (masks:PATH?classes=K)",
            )
        return found.astype(np.uint8)


def _image(stored: Stored, at: int) -> Image.Image:
    source = stored.images.get(at)
    with _naming(stored.images.name(at)), Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as it:
        return it.convert("RGB")


def _mask(stored: Stored, at: int) -> np.ndarray:
    """[H, W] as stored: the numbers of a palette or of a grey picture."""
    if isinstance(stored.masks, np.ndarray):
        return stored.masks[at]
    name = stored.masks.name(at)
    with _naming(name), Image.open(stored.masks.get(at)) as it:
        mode, raw = it.mode, np.asarray(it)
    if raw.ndim != 2 or mode not in ("L", "P", "I", "I;16", "1"):
        raise HarnessError(
            f"the mask {name} is a picture of mode {mode}",
            "one number a pixel: a palette or grey PNG",
            "store the class of each pixel, not its colour",
        )
    return raw.astype(np.int64)


class _naming:
    """Turns a decoder's complaint into an error that names the file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | SyntaxError | ValueError | EOFError | Image.DecompressionBombError):
            raise HarnessError(
                f"{self.name} cannot be decoded: {error}",
                "a whole image",
                "replace it, or take the pair out of the data set",
            ) from error


@dataclass
class MaskData:
    """See the module's docstring. `revision` names the exact pixels, masks and split."""

    spec: MaskSpec
    title: str
    revision: str
    fit: Pairs
    select: Pairs
    opened: list[TestOpened] = field(default_factory=list)
    _test: Pairs | None = field(default=None, repr=False)

    @property
    def test_n(self) -> int:
        assert self._test is not None
        return len(self._test)

    def open_test(self, by: str) -> Pairs:
        """The test part. Every call is recorded in `opened` as done `by` someone."""
        assert self._test is not None
        self.opened.append(TestOpened(by=by, at=datetime.now(UTC).isoformat(timespec="seconds")))
        return self._test


def load(name: str, data_dir: Path | None = None) -> MaskData:
    """Read a data set by name: `camvid`, `voc:PATH`, `ade:PATH` or `masks:PATH` (layouts.py).

    No image is decoded, and the test part stays closed. Raises HarnessError for data that are missing or incomplete.
    """
    found = layouts.find(name, data_dir)
    parts = [Pairs(stored, np.asarray(order)) for stored, order in (found.fit, found.select, found.test)]
    total = hashlib.sha256(f"{LONGEST}".encode())
    for part in parts:
        total.update(f"{part.stored.digest} {part.stored.labelling}".encode())
        total.update(part.order.tobytes())
    spec = MaskSpec(found.name, found.classes, found.names)
    return MaskData(spec, found.title, total.hexdigest()[:16], parts[0], parts[1], _test=parts[2])
