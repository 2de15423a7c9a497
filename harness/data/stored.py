"""A split as it is stored: labels at hand, images still closed. What every reader gives to `dataset.load`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from harness.errors import HarnessError
from harness.rng import Rng

SPLIT_KEY = 20  # of every fixed split; not the study's seed, so that all seeds and methods share one split


@dataclass(frozen=True)
class Encoded:
    """Images as files or as bytes of a file; `name(i)` says which one, for errors."""

    get: Callable[[int], bytes | Path]
    name: Callable[[int], str]
    threads: bool = False  # worth it for whole photographs; thumbnails only wait for the interpreter's lock


Images = np.ndarray | Encoded  # the array is uint8 [n, C, H, W]


@dataclass(frozen=True)
class Split:
    """Image `index[i]` of what `open` returns has label `labels[i]`."""

    labels: np.ndarray  # int64 [n]
    index: np.ndarray  # int64 [n], position among the stored images
    open: Callable[[], Images]
    key: str  # changes when the stored bytes may have changed: names the cache
    header: str  # the same on every machine: stands for the undecoded split in the revision
    where: str  # for errors

    def take(self, positions: np.ndarray) -> Split:
        return replace(self, labels=self.labels[positions], index=self.index[positions])


def split(labels: Sequence[int] | np.ndarray, open: Callable[[], Images], key: str, where: str,
          header: str | None = None) -> Split:  # fmt: skip
    """A split of every stored image, in stored order."""
    numbers = np.asarray(labels, dtype=np.int64)
    return Split(numbers, np.arange(len(numbers)), open, key, header or key, where)


def hold_out(labels: np.ndarray, share: float, purpose: str, where: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Positions of (the rest, the held-out part), each ascending: `share` of every class, at least one image.

    Drawn by a fixed key. Raises HarnessError, naming `where` the images lie, when a class has too few to be in both.
    """
    rng = Rng(SPLIT_KEY).at(purpose)
    held = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise HarnessError(
                f"class {label} has a single image left" + (f" of {where}" if where else ""),
                f"at least 2, to hold one out for {purpose}",
                "add images of it, or take the class out",
            )
        n = max(1, round(share * len(members)))
        held.append(members[rng.permutation(int(label), len(members)).numpy()[:n]])
    positions = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), positions), positions


def check_labels(part: Split, classes: int, names: Sequence[str] = ()) -> None:
    """Raise HarnessError unless the labels are 0..classes-1 and every class is there."""
    if len(part.labels) == 0:
        raise HarnessError(f"no images in {part.where}", "at least one image of every class")
    low, high = int(part.labels.min()), int(part.labels.max())
    if low < 0 or high >= classes:
        at = int(np.flatnonzero((part.labels < 0) | (part.labels >= classes))[0])
        raise HarnessError(
            f"label {part.labels[at]} of image {at} in {part.where} is out of range", f"labels 0 to {classes - 1}"
        )
    empty = np.flatnonzero(np.bincount(part.labels, minlength=classes) == 0)
    if len(empty):
        name = names[empty[0]] if names else int(empty[0])
        raise HarnessError(
            f"class {name} has no image in {part.where} ({len(empty)} of {classes} classes are missing)",
            "every class in every split",
        )


def file_digest(paths: Sequence[Path]) -> str:
    """SHA-256 over the bytes of `paths`, one after another."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 22):
                total.update(chunk)
    return total.hexdigest()


def text_digest(lines: Iterable[str]) -> str:
    """SHA-256 over lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
