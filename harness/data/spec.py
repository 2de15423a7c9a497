"""What a method may know of a data set. Here and not beside Method, so that a plan needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSpec:
    """What a method may know of a data set: square images of `channels` x `size` x `size`, `classes` labels."""

    name: str
    channels: int
    size: int
    classes: int
