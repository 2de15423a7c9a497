"""A data set as the harness uses it: a part to fit, a part to choose on, and a test part behind one door.

Train is divided by a fixed key, independent of the study's seed: methods learn from `fit`; taps, probe rates and other
choices are made on `select`; `open_test` is the only way to the test images and records every opening (design.md,
"Honest evaluation"). Images lie as uint8, fit before select, so that all parts are views of one array, which may be
mapped from disk (cache.py) when it is larger than memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data import arrays, cache, catalog, decode, folder, listed, packed, stored
from harness.data.catalog import Found, Metric
from harness.data.packed import TEST, TRAIN
from harness.data.spec import DataSpec
from harness.data.stored import Split
from harness.records import TestOpened

SELECT_SHARE = 0.1
DECODER = 1  # part of the cache's key: raise it when decode.py or the split changes what it yields


@dataclass(frozen=True)
class Part:
    """Images uint8 [n, C, H, W], labels int64 [n], and where each stood in the original split, int64 [n]."""

    images: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor | slice) -> Part:
        """The images at `index` (positions in this part); a slice gives views."""
        return Part(self.images[index], self.labels[index], self.index[index])


@dataclass(frozen=True)
class Pixels:
    """Decoded pixels of a train part: their name in the cache, and their SHA-256 where it is known."""

    key: str = ""
    digest: str = ""


@dataclass
class Dataset:
    """See the module's docstring. `revision` names the exact pixels, labels and split."""

    spec: DataSpec
    title: str
    revision: str
    mirror: bool
    train: Part
    fit_n: int
    metric: Metric = "top1"  # that its own papers report
    pixels: Pixels = Pixels()
    opened: list[TestOpened] = field(default_factory=list)
    _test: Split | None = field(default=None, repr=False)
    _part: Part | None = field(default=None, repr=False)

    @property
    def fit(self) -> Part:
        return self.train.subset(slice(0, self.fit_n))

    @property
    def select(self) -> Part:
        return self.train.subset(slice(self.fit_n, len(self.train)))

    @property
    def test_n(self) -> int:
        assert self._test is not None
        return len(self._test.labels)

    def open_test(self, by: str) -> Part:
        """The test part, decoded at the first opening. Every call is recorded in `opened` as done `by` someone."""
        assert self._test is not None
        if self._part is None:
            self._part = _part(_decoded(self._test, self.spec)[0], self._test)
        self.opened.append(TestOpened(by=by, at=datetime.now(UTC).isoformat(timespec="seconds")))
        return self._part


def load(name: str, data_dir: Path | None = None, image_size: int | None = None) -> Dataset:
    """Read a data set by name, see catalog.py; `image_size` other than its own resizes every image once.

    The test images stay closed. Raises HarnessError for data that are missing, damaged, or not what their name says.
    """
    return _loaded(catalog.resolve(name, data_dir, image_size), _decoded)


def _loaded(found: Found, images: Callable[[Split, DataSpec], tuple[Tensor, str]]) -> Dataset:
    train, test = _splits(found)
    entry = found.entry
    for part in (train, test):
        stored.check_labels(part, entry.classes)
    known = catalog.ENTRIES.get(entry.name)
    title = entry.title if known and known.size == entry.size else f"{entry.title}, {entry.size} px"
    spec = DataSpec(entry.name, entry.channels, entry.size, entry.classes)
    fit, select = stored.hold_out(train.labels, SELECT_SHARE, "select", train.where)
    chosen = train.take(np.concatenate([fit, select]))
    pixels, digest = images(chosen, spec)
    part = _part(pixels, chosen)
    revision = _revision(digest, part, len(fit), test, entry.size) if digest else ""
    pixels_of = Pixels(_cached_as(chosen, spec)[0], digest)
    return Dataset(spec, title, revision, entry.mirror, part, len(fit), entry.metric, pixels_of, _test=test)


def look(found: Found, exact: bool) -> Dataset:
    """`load` for a look: the same revision at a small price, and nothing written. Its images have no content.

    Pixels decoded before are not compared with their file's name. Where they never were, they are decoded for the
    revision, and let go, only if it has to be `exact`. Else it is "".
    """
    return _loaded(found, lambda chosen, spec: _looked_at(chosen, spec, exact))


def outside(data: Dataset) -> dict[str, Any]:
    """What is known of a data set without its images, as plain values (glance.py)."""
    return {
        "spec": asdict(data.spec),
        "revision": data.revision,
        "mirror": data.mirror,
        "fit_n": data.fit_n,
        "shape": list(data.train.images.shape),
        "pixels": asdict(data.pixels),
    }


def _splits(found: Found) -> tuple[Split, Split]:
    entry = found.entry
    by_torchvision = listed.read if entry.source in listed.READERS else arrays.read
    read = {"packed": packed.read, "folder": folder.read}.get(entry.source, by_torchvision)
    splits = read(found)
    if TEST in splits:
        return splits[TRAIN], splits[TEST]
    assert entry.holdout is not None, entry.name
    whole = splits[TRAIN]
    rest, held = stored.hold_out(whole.labels, entry.holdout, "test", whole.where)
    return whole.take(rest), whole.take(held)


def _decoded(chosen: Split, spec: DataSpec) -> tuple[Tensor, str]:
    """The split's images, and the SHA-256 of their pixels."""
    pixels, digest = cache.pixels(*_cached_as(chosen, spec), lambda: _chunks(chosen, spec))
    return torch.from_numpy(pixels), digest


def _looked_at(chosen: Split, spec: DataSpec, exact: bool) -> tuple[Tensor, str]:
    key, shape = _cached_as(chosen, spec)
    digest = ""
    if (held := cache.mapped(key, shape)) is not None:
        digest = held[1]
    elif exact or not cache.worth(shape):
        digest = cache.digest(lambda: _chunks(chosen, spec))
    return torch.empty(shape, dtype=torch.uint8, device="meta"), digest


def _cached_as(chosen: Split, spec: DataSpec) -> tuple[str, tuple[int, ...]]:
    """The cache's key of the split's images, and their shape."""
    shape = (len(chosen.labels), spec.channels, spec.size, spec.size)
    positions = hashlib.sha256(chosen.index.tobytes()).hexdigest()
    return stored.text_digest([chosen.key, positions, str(shape), str(DECODER)])[:32], shape


def _chunks(chosen: Split, spec: DataSpec) -> Iterator[np.ndarray]:
    return decode.chunks(chosen.open(), chosen.index, spec.channels, spec.size)


def _part(images: Tensor, chosen: Split) -> Part:
    return Part(images, torch.from_numpy(chosen.labels), torch.from_numpy(chosen.index))


def _revision(pixels: str, train: Part, fit_n: int, test: Split, size: int) -> str:
    """16 hex digits over the train pixels, labels and split, and over the test part as stored, without decoding it."""
    total = hashlib.sha256(f"{pixels} {fit_n} {test.header} {size}".encode())
    for numbers in (train.labels.numpy(), train.index.numpy(), test.labels, test.index):
        total.update(numbers.tobytes())
    return total.hexdigest()[:16]
